-- name: bounds_of(parent)
-- The time that each partition of a table covers.
SELECT bounds[1]::timestamptz AS since, bounds[2]::timestamptz AS until
  FROM pg_inherits
  JOIN pg_class ON pg_class.oid = inhrelid
 CROSS JOIN regexp_match(pg_get_expr(relpartbound, pg_class.oid),
                         $$FROM \('([^']+)'\) TO \('([^']+)'\)$$) AS bounds
 WHERE inhparent = to_regclass(:parent);

-- name: mark_thinned(day)!
-- The day's events are not all there, where some were counted before.
INSERT INTO thinned_days (day)
SELECT :day::date
 WHERE EXISTS (SELECT FROM usage_rollup
                WHERE span = 1440 AND bucket = :day::date::timestamp AT TIME ZONE 'UTC')
    OR EXISTS (SELECT FROM usage_deltas
                WHERE bucket >= :day::date::timestamp AT TIME ZONE 'UTC'
                  AND bucket < (:day::date + 1)::timestamp AT TIME ZONE 'UTC')
    ON CONFLICT DO NOTHING;
