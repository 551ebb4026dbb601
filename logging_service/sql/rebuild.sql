-- Statements with which `postgres_rebuild` makes a day anew. What stands in braces is put in by it: the
-- name of a roll-up's table, or of that of its deltas.

-- name: whole_days(since, until)
-- The UTC days whose events are all still there, the newest first.
SELECT day
  FROM pg_inherits
  JOIN pg_class ON pg_class.oid = inhrelid
 CROSS JOIN regexp_match(pg_get_expr(relpartbound, pg_class.oid),
                         $$FROM \('([^']+)'\) TO \('([^']+)'\)$$) AS bounds
 CROSS JOIN LATERAL (SELECT (bounds[1]::timestamptz AT TIME ZONE 'UTC')::date AS day,
                            bounds[2]::timestamptz - bounds[1]::timestamptz AS length) AS covered
 WHERE inhparent = 'log_events'::regclass
   AND bounds[1]::timestamptz AT TIME ZONE 'UTC' = day
   AND length = interval '1 day'
   AND day BETWEEN coalesce(:since, '-infinity'::date) AND coalesce(:until, 'infinity'::date)
   AND NOT EXISTS (SELECT FROM thinned_days WHERE thinned_days.day = covered.day)
 ORDER BY day DESC;

-- name: count_events(since, until)$
SELECT count(*) FROM log_events WHERE timestamp >= :since AND timestamp < :until;

-- name: clear_facts(since, until)!
DELETE FROM event_facts WHERE timestamp >= :since AND timestamp < :until;

-- name: clear_reviews(since, until)!
DELETE FROM review_facts WHERE timestamp >= :since AND timestamp < :until;

-- name: stage_calls#
CREATE TEMPORARY TABLE found_calls (LIKE llm_calls INCLUDING DEFAULTS) ON COMMIT DROP;

-- name: add_calls()
-- Those that the ledger does not have yet: what stands there stays as it is.
INSERT INTO llm_calls SELECT * FROM found_calls ON CONFLICT DO NOTHING RETURNING 1;

-- name: clear_calls()!
TRUNCATE found_calls;

-- name: events(since, until)
SELECT event_id, timestamp, session_id, event_type, source, payload
  FROM log_events
 WHERE timestamp >= :since AND timestamp < :until;

-- name: entries(since, until)
-- What stands in the ledger, corrections included: each adds what it says.
SELECT source, user_id, provider, model, queries, unpriced, uncached_input, cache_read,
       cache_write, cache_write_1h, output, reasoning, unsplit, cost_nanos, reported_nanos,
       best_nanos, duration_us, is_failed
  FROM llm_calls
 WHERE timestamp >= :since AND timestamp < :until;

-- name: take_rows(span, since, until)
DELETE FROM {rollup} WHERE span = :span AND bucket >= :since AND bucket < :until RETURNING *;

-- name: take_deltas(since, until)
DELETE FROM {deltas} WHERE bucket >= :since AND bucket < :until RETURNING *;
