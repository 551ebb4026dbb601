-- name: count_calls(since, until)$
SELECT count(*) FROM llm_calls WHERE timestamp >= :since AND timestamp < :until AND entry = 0;

-- name: next_calls(timestamp, event_id, until, most)
-- Calls behind a key, in order, each as all its entries together have it: those after the first
-- repeat what the first says about the call, and count no tokens.
SELECT timestamp, event_id, max(entry) AS entry, min(provider) AS provider, min(model) AS model,
       sum(uncached_input)::bigint AS uncached_input, sum(cache_read)::bigint AS cache_read,
       sum(cache_write)::bigint AS cache_write, sum(cache_write_1h)::bigint AS cache_write_1h,
       sum(output)::bigint AS output, sum(reasoning)::bigint AS reasoning,
       sum(unsplit)::bigint AS unsplit, bool_or(is_told) AS is_told, min(fault) AS fault,
       bool_or(has_media) AS has_media, min(service) AS service,
       sum(reported_nanos)::bigint AS reported_nanos,
       CASE WHEN sum(unpriced) = 0 THEN sum(cost_nanos)::bigint END AS cost_nanos
  FROM llm_calls
 WHERE (timestamp, event_id) > (:timestamp, :event_id) AND timestamp >= :timestamp AND timestamp < :until
 GROUP BY timestamp, event_id
 ORDER BY timestamp, event_id
 LIMIT :most;

-- name: record_corrections(timestamp, event_id, entry, unpriced, cost_nanos, best_nanos, price_source, unpriced_reason)!
-- One entry a correction, and the same differences for the roll-ups.
WITH recorded AS (
    INSERT INTO llm_calls (timestamp, event_id, entry, session_id, source, user_id, provider, model,
                           queries, unpriced, uncached_input, cache_read, cache_write,
                           cache_write_1h, output, reasoning, unsplit, cost_nanos, best_nanos,
                           price_source, unpriced_reason, fault, service, has_media, is_told,
                           is_failed)
    SELECT timestamp, event_id, new.entry, session_id, source, user_id, provider, model,
           0, new.unpriced, 0, 0, 0, 0, 0, 0, 0, new.cost_nanos, new.best_nanos,
           new.price_source, new.unpriced_reason, fault, service, has_media, is_told, false
      FROM unnest(:timestamp::timestamptz[], :event_id::uuid[], :entry::integer[],
                  :unpriced::smallint[], :cost_nanos::bigint[], :best_nanos::bigint[],
                  :price_source::text[], :unpriced_reason::text[])
           AS new (timestamp, event_id, entry, unpriced, cost_nanos, best_nanos, price_source,
                   unpriced_reason)
      JOIN llm_calls AS call USING (timestamp, event_id)
     WHERE call.entry = 0
    RETURNING timestamp, source, coalesce(user_id, '') AS user_id,
              coalesce(provider, '') AS provider,
              coalesce(model, '') AS model, unpriced, cost_nanos, best_nanos
), binned AS (
    SELECT date_bin('15 minutes', timestamp, '2000-01-01 00:00+00') AS bucket, * FROM recorded
), by_model AS (
    INSERT INTO llm_deltas (bucket, source, provider, model, queries, unpriced, uncached_input,
                            cache_read, cache_write, cache_write_1h, output, reasoning, unsplit,
                            cost_nanos, reported_nanos, best_nanos, timed, failed, total_us,
                            max_us, durations)
    SELECT bucket, source, provider, model, 0, sum(unpriced), 0, 0, 0, 0, 0, 0, 0,
           sum(cost_nanos), 0, sum(best_nanos), 0, 0, 0, 0, '{}'
      FROM binned
     GROUP BY bucket, source, provider, model
)
INSERT INTO user_deltas (bucket, source, user_id, events, errors, queries, unpriced,
                         uncached_input, cache_read, cache_write, cache_write_1h, output,
                         reasoning, unsplit, cost_nanos, reported_nanos, best_nanos, timed,
                         failed, total_us, max_us, durations, sessions)
SELECT bucket, source, user_id, 0, 0, 0, sum(unpriced), 0, 0, 0, 0, 0, 0, 0,
       sum(cost_nanos), 0, sum(best_nanos), 0, 0, 0, 0, '{}', ''
  FROM binned
 GROUP BY bucket, source, user_id;
