-- What `postgres_retention` asks and removes. What stands in braces is put in by it: the name of a roll-up.

-- name: partitions
-- The time that each partition of $1 covers, the oldest first, of those that end up to $2. What is before the
-- year 1 is no date to others.
SELECT (bounds[1]::timestamptz AT TIME ZONE 'UTC')::date AS since
  FROM pg_inherits
  JOIN pg_class ON pg_class.oid = inhrelid
 CROSS JOIN regexp_match(pg_get_expr(relpartbound, pg_class.oid),
                         $$FROM \('([^']+)'\) TO \('([^']+)'\)$$) AS bounds
 WHERE inhparent = $1::text::regclass AND bounds[2]::timestamptz <= $2
   AND bounds[1]::timestamptz >= '0001-01-01'
 ORDER BY 1

-- name: types
-- One look in the index per event type from $1 to $2, however many events there are.
WITH RECURSIVE known AS (
    (SELECT event_type FROM log_events
      WHERE timestamp >= $1 AND timestamp < $2
      ORDER BY event_type LIMIT 1)
    UNION ALL
    SELECT (SELECT event_type FROM log_events
             WHERE timestamp >= $1 AND timestamp < $2 AND event_type > known.event_type
             ORDER BY event_type LIMIT 1)
      FROM known WHERE known.event_type IS NOT NULL
)
SELECT event_type FROM known WHERE event_type IS NOT NULL

-- name: forget_rows
DELETE FROM {rollup}
 WHERE ctid = ANY (ARRAY(SELECT ctid FROM {rollup}
                          WHERE span = ANY ('{{15,60,1440}}') AND bucket < $1 LIMIT $2))

-- name: forget_reviews
DELETE FROM review_facts
 WHERE ctid = ANY (ARRAY(SELECT ctid FROM review_facts WHERE timestamp < $1 LIMIT $2))
