-- What `local_buffer` asks and writes in SQLite. Times are microseconds since 1970. What stands in braces is put in by
-- it: conditions out of fixed texts.

-- name: make_reviews
CREATE TABLE reviews (
    number INTEGER PRIMARY KEY AUTOINCREMENT, review_id TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL, origin TEXT NOT NULL, project TEXT NOT NULL, session_id TEXT NOT NULL,
    user_id TEXT, status TEXT NOT NULL, verdict TEXT, created_at INTEGER NOT NULL,
    content_key TEXT NOT NULL, idempotency_digest BLOB, cost_nanos INTEGER,
    is_whole INTEGER NOT NULL, event_waits INTEGER NOT NULL, size INTEGER NOT NULL,
    review BLOB NOT NULL
) STRICT

-- name: make_instances
CREATE TABLE instances (instance TEXT PRIMARY KEY, is_over INTEGER NOT NULL) STRICT

-- name: make_index_of_keys
CREATE INDEX reviews_key ON reviews (idempotency_digest) WHERE idempotency_digest IS NOT NULL

-- name: make_index_of_contents
CREATE INDEX reviews_content ON reviews (content_key)

-- name: make_index_of_whole
CREATE INDEX reviews_whole ON reviews (number) WHERE is_whole

-- name: put
INSERT INTO reviews (review_id, version, origin, project, session_id, user_id, status, verdict,
                     created_at, content_key, idempotency_digest, cost_nanos, is_whole,
                     event_waits, size, review)
VALUES (:review_id, 1, :origin, :project, :session_id, :user_id, :status, :verdict, :created_at,
        :content_key, :idempotency_digest, :cost_nanos, :is_whole, :event_waits, :size, :review)
    ON CONFLICT (review_id) DO UPDATE
       SET version = version + 1, origin = excluded.origin, status = excluded.status,
           verdict = excluded.verdict, cost_nanos = excluded.cost_nanos,
           is_whole = excluded.is_whole, event_waits = excluded.event_waits, size = excluded.size,
           review = excluded.review

-- name: some
SELECT review_id, origin, version, review FROM reviews WHERE {conditions} ORDER BY {order} LIMIT :most

-- name: ids
SELECT review_id FROM reviews

-- name: used
SELECT count(*), coalesce(sum(size), 0) FROM reviews

-- name: forget
DELETE FROM reviews WHERE review_id = :review_id AND version = :version

-- name: drop_oldest
-- One that has ended, rather one whose event does not wait.
DELETE FROM reviews
 WHERE number = (SELECT number FROM reviews WHERE status <> 'running'
                  ORDER BY event_waits, number LIMIT 1)
RETURNING review_id, is_whole, event_waits

-- name: spent
SELECT coalesce(sum(cost_nanos), 0) FROM reviews WHERE created_at >= :since AND created_at < :until

-- name: end_instances
UPDATE instances SET is_over = true

-- name: add_instance
INSERT INTO instances VALUES (:instance, false)

-- name: cut_instances
DELETE FROM instances WHERE rowid <= (SELECT max(rowid) FROM instances) - 1000

-- name: over_instances
SELECT instance FROM instances WHERE is_over

-- name: forget_instance
DELETE FROM instances WHERE instance = :instance
