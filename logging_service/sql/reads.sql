-- Statements between which `postgres_reader` chooses, and the parts it composes them of. What
-- stands in braces is put in by it: a fixed text, or the number of a bound parameter.

-- name: rows
-- Events that an index finds, from one key on, in time order.
SELECT event_id, timestamp, received_at, event_type, session_id, source, trace_id, request_id,
       redactions, payload
  FROM log_events
 WHERE {conditions}
 ORDER BY timestamp {direction}, event_id {direction}
 LIMIT {limit}

-- name: merged
-- The rows of several event types: each comes in time order, so merging reads no more than it
-- returns, where `event_type = ANY (…)` would read all or sort all.
SELECT * FROM ({each}) AS each_type
 ORDER BY timestamp {direction}, event_id {direction}
 LIMIT {limit}

-- name: key_at
-- The key of the row behind which a page begins; for want of columns an index alone answers.
SELECT timestamp, event_id FROM ({rows}) AS passed OFFSET {offset}

-- name: judged
-- One chunk of rows read: those that match, and the chunk's last row, from where to go on.
SELECT {columns} FROM (
    SELECT *,
           ({matches}) AS matches,
           row_number() OVER (ORDER BY timestamp {direction}, event_id {direction}) AS place
      FROM ({rows}) AS chunk
 ) AS judged
 WHERE matches OR place = {chunk}
 ORDER BY timestamp {direction}, event_id {direction}
 LIMIT {limit}

-- name: count
SELECT count(*) FROM (SELECT FROM log_events WHERE {conditions} LIMIT {limit}) AS counted

-- name: estimate
EXPLAIN (FORMAT JSON) SELECT FROM log_events WHERE {conditions}

-- name: event_at
SELECT event_id, timestamp, received_at, event_type, session_id, source, trace_id, request_id,
       redactions, payload
  FROM log_events
 WHERE timestamp >= $1 AND timestamp < $2 AND event_id = $3
   AND ($4::text IS NULL OR source = $4)
 ORDER BY timestamp DESC
 LIMIT 1

-- name: partitions
-- The time that each partition covers, newest first.
SELECT bounds[1]::timestamptz AS since, bounds[2]::timestamptz AS until
  FROM pg_inherits
  JOIN pg_class ON pg_class.oid = inhrelid
 CROSS JOIN regexp_match(pg_get_expr(relpartbound, pg_class.oid),
                         $$FROM \('([^']+)'\) TO \('([^']+)'\)$$) AS bounds
 WHERE inhparent = 'log_events'::regclass
 ORDER BY 1 DESC

-- name: count_types
SELECT event_type, count(*), min(timestamp) AS first, max(timestamp) AS last
  FROM log_events
 GROUP BY event_type
 ORDER BY count DESC, event_type

-- name: list_types
-- One look in the index per event type and end, however many events there are.
WITH RECURSIVE known AS (
    (SELECT event_type FROM log_events ORDER BY event_type LIMIT 1)
    UNION ALL
    SELECT (SELECT event_type FROM log_events WHERE event_type > known.event_type
             ORDER BY event_type LIMIT 1)
      FROM known WHERE known.event_type IS NOT NULL
)
SELECT event_type,
       (SELECT min(timestamp) FROM log_events WHERE event_type = known.event_type) AS first,
       (SELECT max(timestamp) FROM log_events WHERE event_type = known.event_type) AS last
  FROM known
 WHERE event_type IS NOT NULL

-- name: stored
-- With a digest of the content, as `wire.digest` makes it. The LIMIT keeps it one look in the
-- index per key, whatever the planner thinks of the table.
SELECT timestamp, event_id, digest
  FROM unnest($1::timestamptz[], $2::uuid[]) AS wanted (timestamp, event_id)
 CROSS JOIN LATERAL (SELECT md5(concat_ws(chr(31), event_type, coalesce(session_id, ''), source,
                                             payload::text)) AS digest
                       FROM log_events
                      WHERE log_events.timestamp = wanted.timestamp
                        AND log_events.event_id = wanted.event_id
                      LIMIT 1) AS found

-- name: places
-- Times from $1 to $2 in which a project can have events of these types ('': of any): quarter hours
-- that count some, and days of which nothing is counted.
SELECT bucket AS since, bucket + interval '15 minutes' AS until
  FROM usage_rollup
 WHERE span = 15 AND bucket >= $1 AND bucket < $2 AND source = $3 AND event_type = ANY ($4)
 UNION
SELECT bucket, bucket + interval '15 minutes'
  FROM usage_deltas
 WHERE bucket >= $1 AND bucket < $2 AND source = $3 AND event_type = ANY ($4)
 UNION
SELECT day.since, day.until
  FROM unnest($5::timestamptz[], $6::timestamptz[]) AS day (since, until)
 WHERE day.since >= $1 AND day.since < $2
   AND NOT EXISTS (SELECT FROM usage_rollup WHERE span = 1440 AND bucket = day.since)
   AND NOT EXISTS (SELECT FROM usage_deltas WHERE bucket >= day.since AND bucket < day.until)
 ORDER BY since

-- name: count_of_source
-- How many events of these types ('': of any) the roll-ups count of a project in rows of a span.
SELECT coalesce(sum(events), 0)::bigint
  FROM (SELECT events
          FROM usage_rollup
         WHERE span = $5 AND bucket >= $1 AND bucket < $2 AND source = $3 AND event_type = ANY ($4)
         UNION ALL
        SELECT events
          FROM usage_deltas
         WHERE bucket >= $1 AND bucket < $2 AND source = $3 AND event_type = ANY ($4)) AS counted

-- name: types_of_source
-- What the roll-ups count of a project from $2 on. The first and the last event of a type are looked
-- for in the quarter hours in which they are, since no index has the source.
WITH counted AS (
    SELECT event_type, events, bucket AS first_day, bucket AS last_day
      FROM usage_rollup
     WHERE span = 1440 AND bucket >= $2 AND source = $1 AND event_type <> ''
     UNION ALL
    SELECT event_type, events, date_trunc('day', bucket, 'UTC'), date_trunc('day', bucket, 'UTC')
      FROM usage_deltas
     WHERE bucket >= $2 AND source = $1 AND event_type <> ''
), types AS (
    SELECT event_type, sum(events)::bigint AS count, min(first_day) AS first_day,
           max(last_day) AS last_day
      FROM counted
     GROUP BY event_type
), quarters AS (
    SELECT event_type, count,
           (SELECT min(bucket)
              FROM (SELECT bucket FROM usage_rollup
                     WHERE span = 15 AND bucket >= first_day
                       AND bucket < first_day + interval '1 day'
                       AND source = $1 AND usage_rollup.event_type = types.event_type
                     UNION ALL
                    SELECT bucket FROM usage_deltas
                     WHERE source = $1 AND usage_deltas.event_type = types.event_type
                       AND bucket >= $2) AS firsts) AS first,
           (SELECT max(bucket)
              FROM (SELECT bucket FROM usage_rollup
                     WHERE span = 15 AND bucket >= last_day
                       AND bucket < last_day + interval '1 day'
                       AND source = $1 AND usage_rollup.event_type = types.event_type
                     UNION ALL
                    SELECT bucket FROM usage_deltas
                     WHERE source = $1 AND usage_deltas.event_type = types.event_type
                       AND bucket >= $2) AS lasts) AS last
      FROM types
)
SELECT event_type, count,
       coalesce((SELECT min(timestamp) FROM log_events
                  WHERE timestamp >= quarters.first
                    AND timestamp < quarters.first + interval '15 minutes'
                    AND source = $1 AND log_events.event_type = quarters.event_type),
                first) AS first,
       coalesce((SELECT max(timestamp) FROM log_events
                  WHERE timestamp >= quarters.last
                    AND timestamp < quarters.last + interval '15 minutes'
                    AND source = $1 AND log_events.event_type = quarters.event_type),
                last) AS last
  FROM quarters
 WHERE count > 0
 ORDER BY count DESC, event_type
