-- What `review_store` asks and writes. What stands in braces is put in by it: names of columns and numbers of
-- parameters.

-- name: begin
INSERT INTO reviews ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING RETURNING true

-- name: same_key
SELECT {columns} FROM reviews WHERE project = $1 AND idempotency_digest = $2

-- name: finish
-- Nothing when it has an end already, or was erased.
UPDATE reviews SET ({columns}) = ROW ({values}), event_due_at = CASE WHEN {due} THEN now() END
 WHERE review_id = {review_id} AND status = 'running'
RETURNING true

-- name: put
INSERT INTO reviews ({columns}, event_due_at) VALUES ({values}, CASE WHEN {due} THEN now() END)
    ON CONFLICT (review_id) DO UPDATE
       SET ({columns}, event_due_at) = ROW ({excluded}, excluded.event_due_at)
     WHERE reviews.status = 'running'

-- name: find
SELECT {columns} FROM reviews WHERE review_id = $1 AND ($2::text IS NULL OR project = $2)

-- name: cached
SELECT {columns} FROM reviews
 WHERE content_key = $1 AND project = $2 AND created_at >= $3
   AND status = 'completed' AND NOT from_cache AND result IS NOT NULL
 ORDER BY created_at DESC LIMIT 1

-- name: page
SELECT {columns} FROM reviews WHERE {conditions}
 ORDER BY created_at DESC, review_id DESC LIMIT {limit}

-- name: spent
SELECT least(coalesce(sum(cost_nanos), 0), 9223372036854775807)::bigint
  FROM reviews WHERE created_at >= $1 AND created_at < $2

-- name: left_running
-- Those of instances that have ended, and those that nobody can be at work on any more.
SELECT {columns} FROM reviews
 WHERE status = 'running' AND (instance = ANY ($1) OR stored_at < now() - $2::interval)
 ORDER BY stored_at LIMIT $3
   FOR UPDATE SKIP LOCKED

-- name: lease_events
-- Events to be posted, which nobody else takes for some time.
UPDATE reviews SET event_due_at = now() + $2::interval
 WHERE review_id IN (SELECT review_id FROM reviews
                      WHERE event_due_at <= now()
                      ORDER BY event_due_at LIMIT $1
                        FOR UPDATE SKIP LOCKED)
RETURNING review_id, event

-- name: release_events
UPDATE reviews SET event_due_at = now() WHERE review_id = ANY ($1) AND event_due_at IS NOT NULL

-- name: settle_events
-- $2 are the reasons for which events were refused, null for those that were taken.
UPDATE reviews
   SET event_due_at = NULL, event_refused = told.reason,
       event_sent_at = CASE WHEN told.reason IS NULL THEN now() END
  FROM unnest($1::uuid[], $2::text[]) AS told (id, reason)
 WHERE review_id = told.id

-- name: delete_old
DELETE FROM reviews
 WHERE review_id = ANY (ARRAY(SELECT review_id FROM reviews
                               WHERE created_at < $1 ORDER BY created_at LIMIT $2))
