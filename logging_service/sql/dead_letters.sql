-- What stands in braces is put in by `postgres_dead_letters`: a fixed text, or the number of a bound
-- parameter.

-- name: keys()
SELECT id, attempts, octet_length(event) AS size
  FROM dead_letters
 WHERE {conditions}
 ORDER BY id {direction}
 LIMIT {limit};

-- name: count_letters()$
SELECT count(*) FROM dead_letters WHERE {conditions};

-- name: letters(ids)
SELECT id, event, reason, detail, sqlstate, attempts, first_seen, last_seen, replayed_at
  FROM dead_letters WHERE id = ANY (:ids);

-- name: mark_replayed(ids, attempts)!
-- A letter whose event has failed again since it was read has an attempt more, and stays open.
-- Locked in the order in which letters are buried: two who lock in two orders wait for each other.
WITH locked AS (
    SELECT id, attempts FROM dead_letters WHERE id = ANY (:ids::bigint[])
     ORDER BY digest, reason, id FOR UPDATE
)
UPDATE dead_letters SET replayed_at = now()
  FROM locked
  JOIN unnest(:ids::bigint[], :attempts::integer[]) AS put (id, attempts) USING (id, attempts)
 WHERE dead_letters.id = locked.id;

-- name: drop_letters(ids)
DELETE FROM dead_letters WHERE id = ANY (:ids) RETURNING id;
