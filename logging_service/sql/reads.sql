-- Statements between which `postgres_reader` chooses, and the parts it composes them of. What
-- stands in braces is put in by it: a fixed text, or the number of a bound parameter.

-- name: rows
-- Events that an index finds, from one key on, in time order.
SELECT event_id, timestamp, received_at, event_type, session_id, source, trace_id, request_id,
       payload
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
       payload
  FROM log_events
 WHERE timestamp >= $1 AND timestamp < $2 AND event_id = $3
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
