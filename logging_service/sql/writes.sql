-- name: lease_committed(lease_id)$
-- Whether a delivery of this lease was committed before.
SELECT EXISTS (SELECT FROM deliveries WHERE lease_id = :lease_id);

-- name: record_delivery(lease_id, epoch, stored, duplicates, dead_lettered, expired)$
-- The lease's one row, in the transaction of its events; null when another consumer was first.
INSERT INTO deliveries (lease_id, epoch, stored, duplicates, dead_lettered, expired)
VALUES (:lease_id, :epoch, :stored, :duplicates, :dead_lettered, :expired)
ON CONFLICT (lease_id) DO NOTHING
RETURNING stored;

-- name: insert_staged()
-- Each new event once, the first of equals; the keys of those that were inserted.
INSERT INTO log_events (event_id, timestamp, received_at, event_type, session_id, source,
                        trace_id, request_id, redactions, payload)
SELECT event_id, timestamp, received_at, event_type, session_id, source,
       trace_id, request_id, redactions, payload
  FROM (SELECT DISTINCT ON (timestamp, event_id) * FROM staged_events
         ORDER BY timestamp, event_id, ordinal) AS firsts
ON CONFLICT DO NOTHING
RETURNING event_id, timestamp;

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

-- name: bury(event, reason, detail, sqlstate, attempts, digest, event_type)*!
-- Events that can never be stored, as they came. One that failed for the same reason before is the
-- same letter, also when it was replayed.
INSERT INTO dead_letters AS letter (event, reason, detail, sqlstate, attempts, digest, event_type)
VALUES (:event, :reason, :detail, :sqlstate, :attempts, :digest, :event_type)
ON CONFLICT (digest, reason) DO UPDATE
   SET detail = EXCLUDED.detail,
       sqlstate = EXCLUDED.sqlstate,
       attempts = least(letter.attempts::bigint + EXCLUDED.attempts, 2147483647),
       last_seen = now(),
       replayed_at = NULL;

-- name: count_dead_letters()$
SELECT count(*) FROM dead_letters WHERE replayed_at IS NULL;

-- name: forget_replayed_letters()!
DELETE FROM dead_letters WHERE replayed_at < now() - interval '7 days';
