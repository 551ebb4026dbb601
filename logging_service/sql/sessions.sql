-- What sessions did in each hour, as `postgres_sessions` adds it up.

-- name: hours
-- The hours from $1 to $2 in which something happened, the newest first, with their events, and
-- whether their sums are right: nothing came late, was counted again, or is gone.
SELECT happened.hour, happened.events, thinned_days.day IS NOT NULL AS is_thinned,
       coalesce(made.events = happened.events AND made.changes = ledger_changes.number, false)
       AND pg_inherits.inhrelid IS NOT NULL AND thinned_days.day IS NULL AS is_right
  FROM (SELECT hour, sum(events) AS events
          FROM (SELECT bucket AS hour, events FROM usage_rollup
                 WHERE span = 60 AND bucket >= $1 AND bucket < $2 AND event_type = ''
                UNION ALL
                SELECT date_bin('1 hour', bucket, '2000-01-01 00:00+00'), events FROM usage_deltas
                 WHERE bucket >= $1 AND bucket < $2 AND event_type = '') AS counted
         GROUP BY hour) AS happened
 CROSS JOIN ledger_changes
  LEFT JOIN session_hours AS made ON made.hour = happened.hour
  LEFT JOIN pg_inherits ON inhrelid = made.facts AND inhparent = 'event_facts'::regclass
  LEFT JOIN thinned_days ON day = (happened.hour AT TIME ZONE 'UTC')::date
 ORDER BY happened.hour DESC

-- name: facts
-- The partitions of facts and the time that each covers.
SELECT inhrelid AS facts, bounds[1]::timestamptz AS since, bounds[2]::timestamptz AS until
  FROM pg_inherits
  JOIN pg_class ON pg_class.oid = inhrelid
 CROSS JOIN regexp_match(pg_get_expr(relpartbound, pg_class.oid),
                         $$FROM \('([^']+)'\) TO \('([^']+)'\)$$) AS bounds
 WHERE inhparent = 'event_facts'::regclass

-- name: gone_hours
-- Hours whose events are gone, all or some of them.
SELECT hour
  FROM session_hours
 WHERE NOT EXISTS (SELECT FROM pg_inherits
                    WHERE inhrelid = facts AND inhparent = 'event_facts'::regclass)
    OR (hour AT TIME ZONE 'UTC')::date IN (SELECT day FROM thinned_days)
 LIMIT $1

-- name: lock_sums
-- Takes no snapshot: the one that follows has all that was committed by who had this before.
LOCK TABLE session_hours IN SHARE ROW EXCLUSIVE MODE NOWAIT

-- name: look_up
-- Each session is looked up, however the planner thinks of the table.
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off

-- name: forget_hours
WITH forgotten AS (DELETE FROM session_hours WHERE hour = ANY ($1))
DELETE FROM session_sums WHERE hour = ANY ($1)

-- name: add_hour
WITH rows AS (
    SELECT session_id, source, 1 AS events, (event_type = 'error_occurred')::int AS errors, user_id,
           0 AS queries, 0 AS unpriced, 0 AS uncached_input, 0 AS cache_read, 0 AS cache_write,
           0 AS cache_write_1h, 0 AS output, 0 AS reasoning, 0 AS unsplit, 0 AS cost_nanos,
           0 AS reported_nanos, 0 AS best_nanos, NULL::bigint AS duration_us
      FROM event_facts
     WHERE timestamp >= $1 AND timestamp < $1 + interval '1 hour'
    UNION ALL
    SELECT session_id, source, 0, 0, NULL, queries, unpriced, uncached_input, cache_read,
           cache_write, cache_write_1h, output, reasoning, unsplit, cost_nanos, reported_nanos,
           best_nanos, duration_us
      FROM llm_calls
     WHERE timestamp >= $1 AND timestamp < $1 + interval '1 hour'
), added AS (
    SELECT session_id, source, sum(events) AS events, sum(errors) AS errors,
           array_agg(DISTINCT user_id) FILTER (WHERE user_id IS NOT NULL) AS user_ids,
           sum(queries) AS queries, sum(unpriced) AS unpriced,
           sum(uncached_input) AS uncached_input, sum(cache_read) AS cache_read,
           sum(cache_write) AS cache_write, sum(cache_write_1h) AS cache_write_1h,
           sum(output) AS output, sum(reasoning) AS reasoning, sum(unsplit) AS unsplit,
           coalesce(sum(cost_nanos), 0) AS cost_nanos,
           coalesce(sum(reported_nanos), 0) AS reported_nanos,
           coalesce(sum(best_nanos), 0) AS best_nanos,
           count(duration_us) AS timed, coalesce(sum(duration_us), 0) AS total_us,
           array_agg(duration_us) FILTER (WHERE duration_us IS NOT NULL) AS duration_us
      FROM rows
     GROUP BY session_id, source
), others AS (
    UPDATE session_sums SET is_alone = false
     WHERE is_alone AND session_id IN (SELECT session_id FROM added)
    RETURNING 1
)
INSERT INTO session_sums
SELECT ($1 AT TIME ZONE 'UTC')::date, $1, session_id, source,
       session_id IS NOT NULL AND count(*) OVER (PARTITION BY session_id) = 1
       AND NOT EXISTS (SELECT FROM session_sums AS other WHERE other.session_id = added.session_id),
       events, errors, user_ids, queries, unpriced, uncached_input, cache_read, cache_write,
       cache_write_1h, output, reasoning, unsplit, cost_nanos, reported_nanos, best_nanos,
       timed, total_us, duration_us
  FROM added

-- name: note_hour
INSERT INTO session_hours (hour, events, changes, facts)
SELECT $1, $2, number, $3 FROM ledger_changes
