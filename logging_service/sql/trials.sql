-- name: begin_delivery(lease_id, run)$
-- How many runs began the lease and have not ended it in order, this one too; so many are enough.
INSERT INTO trials (lease_id, tried_by, begun_by) VALUES (:lease_id, '{}', ARRAY[:run::uuid])
ON CONFLICT (lease_id) DO UPDATE
   SET begun_by = (array_remove(trials.begun_by, :run) || EXCLUDED.begun_by)[1 : 16],
       tried_at = now()
RETURNING cardinality(begun_by);

-- name: release_delivery(lease_id, run)!
-- Takes back what `begin_delivery` did: this run gives the lease back in order.
UPDATE trials SET begun_by = array_remove(begun_by, :run) WHERE lease_id = :lease_id;

-- name: begin_trial(lease_id, run)^
-- Marks the lease's next event as being tried by this run, which counts once for it.
INSERT INTO trials (lease_id, tried_by) VALUES (:lease_id, ARRAY[:run::uuid])
ON CONFLICT (lease_id) DO UPDATE
   SET tried_by = array_remove(trials.tried_by, :run) || EXCLUDED.tried_by,
       tried_at = now()
RETURNING place, cardinality(tried_by) AS tries;

-- name: advance_trial(lease_id, place, stored, duplicates, dead_lettered, expired)$
-- Goes on to the next event, in the transaction of this one; null when another run was first.
UPDATE trials
   SET place = place + 1,
       tried_by = '{}',
       stored = stored + :stored,
       duplicates = duplicates + :duplicates,
       dead_lettered = dead_lettered + :dead_lettered,
       expired = expired + :expired
 WHERE lease_id = :lease_id AND place = :place
RETURNING place;

-- name: release_trial(lease_id, run)!
-- Takes back what `begin_trial` did: this run knows what ended the trial, and it was not the event.
UPDATE trials SET tried_by = array_remove(tried_by, :run) WHERE lease_id = :lease_id;

-- name: end_trials(lease_id, place)^
-- The lease's totals, once all its events are settled; no row when another run was first.
DELETE FROM trials WHERE lease_id = :lease_id AND place = :place
RETURNING stored, duplicates, dead_lettered, expired;

-- name: drop_trials(lease_id)!
-- A lease that was committed needs none.
DELETE FROM trials WHERE lease_id = :lease_id;

-- name: forget_trials()!
-- Rows of leases that somebody took out of the queue: an event waits a year at the most.
DELETE FROM trials WHERE tried_at < now() - interval '400 days';
