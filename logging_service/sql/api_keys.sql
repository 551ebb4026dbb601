-- name: newest_change()$
SELECT number FROM key_changes;

-- name: begin_change()$
-- Locked until the commit: changes become visible in the order of their numbers.
UPDATE key_changes SET number = number + 1 RETURNING number;

-- name: active_keys()$
SELECT count(*) FROM api_keys
 WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now());

-- name: insert_key(id, name, project, scopes, digest, pepper, rates, networks, created_by, expires_at, lifetime, change)!
-- It ends at `expires_at`, or after `lifetime`, or never.
INSERT INTO api_keys (id, name, project, scopes, digest, pepper, rates, networks, created_by,
                      expires_at, changed)
VALUES (:id, :name, :project, :scopes, :digest, :pepper, :rates, :networks, :created_by,
        coalesce(:expires_at::timestamptz, now() + :lifetime::interval), :change);

-- name: lock_key(id)^
SELECT name, project, scopes, rates, networks, revoked_at, rotated_to,
       expires_at - created_at AS lifetime,
       expires_at IS NOT NULL AND expires_at <= now() AS is_expired
  FROM api_keys WHERE id = :id FOR UPDATE;

-- name: hand_over(id, overlap, successor, change)!
UPDATE api_keys
   SET expires_at = least(coalesce(expires_at, 'infinity'), now() + :overlap::interval),
       rotated_to = :successor, changed = :change
 WHERE id = :id;

-- name: end_key(id, change)!
UPDATE api_keys SET revoked_at = now(), changed = :change WHERE id = :id;

-- name: note_change(event_type, payload)!
INSERT INTO audit_outbox (event_type, payload) VALUES (:event_type, :payload);

-- name: shown_keys()
-- `conditions` and `limit` are put in by `postgres_keys`.
SELECT id, name, project, scopes, rates, networks, created_at, created_by, expires_at, revoked_at,
       rotated_to, pepper, used.last_used_at, used.requests_last_day
  FROM api_keys
 CROSS JOIN LATERAL (
    SELECT max(hour) AS last_used_at,
           coalesce(sum(requests) FILTER (WHERE hour > now() - interval '24 hours'), 0)::bigint
               AS requests_last_day
      FROM api_key_uses WHERE key_id = api_keys.id
 ) AS used
 WHERE {conditions}
 ORDER BY created_at DESC, id DESC
 LIMIT {limit};

-- name: uses_of(ids)
SELECT key_id, max(hour) AS last_used_at,
       coalesce(sum(requests) FILTER (WHERE hour > now() - interval '24 hours'), 0)::bigint
           AS requests_last_day
  FROM api_key_uses WHERE key_id = ANY (:ids::text[]) GROUP BY key_id;

-- name: changed_keys(since)
SELECT id, name, project, scopes, digest, pepper, rates, networks, expires_at, revoked_at
  FROM api_keys WHERE changed > :since;

-- name: good_keys(most)
SELECT id, name, project, scopes, digest, pepper, rates, networks, expires_at, revoked_at
  FROM api_keys
 WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
 ORDER BY created_at DESC, id DESC
 LIMIT :most;

-- name: add_uses(ids, hours, requests)!
-- Sorted: two processes that lock rows in two orders wait for each other.
INSERT INTO api_key_uses AS kept (key_id, hour, requests)
SELECT id, hour, requests
  FROM unnest(:ids::text[], :hours::timestamptz[], :requests::bigint[]) AS used (id, hour, requests)
 ORDER BY id, hour
    ON CONFLICT (key_id, hour) DO UPDATE SET requests = kept.requests + excluded.requests;

-- name: drop_old_uses()!
-- The last row of a key stays: it says when the key was last used.
DELETE FROM api_key_uses AS old
 WHERE hour < now() - interval '2 days'
   AND EXISTS (SELECT FROM api_key_uses AS later
                WHERE later.key_id = old.key_id AND later.hour > old.hour);
