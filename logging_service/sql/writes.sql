-- name: lease_committed(lease_id)$
-- Whether a delivery of this lease was committed before.
SELECT EXISTS (SELECT FROM deliveries WHERE lease_id = :lease_id);

-- name: record_delivery(lease_id, stored, duplicates, dead_lettered, expired)$
-- The lease's one row, in the transaction of its events; null when another consumer was first.
INSERT INTO deliveries (lease_id, stored, duplicates, dead_lettered, expired)
VALUES (:lease_id, :stored, :duplicates, :dead_lettered, :expired)
ON CONFLICT (lease_id) DO NOTHING
RETURNING stored;

-- name: fold_deliveries()!
-- Deliveries of days ago become one row, under the id that no lease has: none of them comes again.
WITH gone AS (
    DELETE FROM deliveries
     WHERE committed_at < now() - interval '2 days'
       AND lease_id <> '00000000-0000-0000-0000-000000000000'
    RETURNING stored, duplicates, dead_lettered, expired
)
INSERT INTO deliveries AS folded (lease_id, stored, duplicates, dead_lettered, expired)
SELECT '00000000-0000-0000-0000-000000000000', sum(stored), sum(duplicates), sum(dead_lettered),
       sum(expired)
  FROM gone HAVING count(*) > 0
ON CONFLICT (lease_id) DO UPDATE
   SET committed_at = now(),
       stored = folded.stored + EXCLUDED.stored,
       duplicates = folded.duplicates + EXCLUDED.duplicates,
       dead_lettered = folded.dead_lettered + EXCLUDED.dead_lettered,
       expired = folded.expired + EXCLUDED.expired;

-- name: insert_staged()
-- Each new event once, the first of equals; a row for each that was inserted.
INSERT INTO log_events (event_id, timestamp, received_at, event_type, session_id, source,
                        trace_id, request_id, redactions, payload)
SELECT event_id, timestamp, received_at, event_type, session_id, source,
       trace_id, request_id, redactions, payload
  FROM (SELECT DISTINCT ON (timestamp, event_id) * FROM staged_events
         ORDER BY timestamp, event_id, ordinal) AS firsts
ON CONFLICT DO NOTHING
RETURNING 1;

-- name: conflicting_staged()
-- Places, from 0, of staged events whose key is stored with other content.
SELECT staged.place
  FROM (SELECT *, row_number() OVER (ORDER BY ordinal) - 1 AS place FROM staged_events) AS staged
  JOIN log_events AS kept USING (timestamp, event_id)
 WHERE (staged.event_type, staged.session_id, staged.source, staged.payload::text)
       IS DISTINCT FROM (kept.event_type, kept.session_id, kept.source, kept.payload::text)
 ORDER BY place;

-- name: clear_staging()!
DELETE FROM staged_events;

-- name: bury(event, reason, detail, sqlstate, attempts)*!
-- Events that can never be stored, as they came.
INSERT INTO dead_letters (event, reason, detail, sqlstate, attempts)
VALUES (:event, :reason, :detail, :sqlstate, :attempts);

-- name: count_dead_letters()$
SELECT count(*) FROM dead_letters;
