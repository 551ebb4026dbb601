-- name: add_note(event_type, payload)!
INSERT INTO audit_outbox (event_type, payload) VALUES (:event_type, :payload);

-- name: lock_forwarding(lock)$
-- Whether this transaction alone takes notes from now on.
SELECT pg_try_advisory_xact_lock(:lock);

-- name: take_notes(most)
-- The oldest notes, taken out.
WITH taken AS (
    DELETE FROM audit_outbox
     WHERE number IN (SELECT number FROM audit_outbox ORDER BY number LIMIT :most)
    RETURNING *
)
SELECT event_id, timestamp, event_type, payload FROM taken ORDER BY number;
