-- name: lock_books()$
-- One at a time reads a queue's tallies and notes them, or an old reading would overtake a new one.
SELECT pg_advisory_xact_lock(7260411532);

-- name: note_present(epoch, accepted)!
-- The present epoch as the queue counts it now; what it counts less than before was rolled back.
INSERT INTO epochs AS noted (epoch, accepted) VALUES (:epoch, :accepted)
ON CONFLICT (epoch) DO UPDATE
   SET accepted = EXCLUDED.accepted,
       rolled_back = noted.rolled_back + greatest(0, noted.accepted - EXCLUDED.accepted),
       last_seen = now()
 WHERE noted.accepted <> EXCLUDED.accepted;

-- name: note_past(epoch, accepted)!
-- An epoch that is over, as one process remembers it: another may have seen more of it.
INSERT INTO epochs AS noted (epoch, accepted) VALUES (:epoch, :accepted)
ON CONFLICT (epoch) DO UPDATE
   SET accepted = EXCLUDED.accepted - noted.rolled_back,
       last_seen = now()
 WHERE noted.accepted < EXCLUDED.accepted - noted.rolled_back;

-- name: note_present_moves(origin, epoch, events)*!
-- How many events of another queue's epoch the present one counts now.
INSERT INTO moves AS noted (origin, epoch, events) VALUES (:origin, :epoch, :events)
ON CONFLICT (origin, epoch) DO UPDATE
   SET events = EXCLUDED.events,
       rolled_back = noted.rolled_back + greatest(0, noted.events - EXCLUDED.events)
 WHERE noted.events <> EXCLUDED.events;

-- name: note_past_moves(origin, epoch, events)*!
-- What one process remembers of it.
INSERT INTO moves AS noted (origin, epoch, events) VALUES (:origin, :epoch, :events)
ON CONFLICT (origin, epoch) DO UPDATE
   SET events = EXCLUDED.events - noted.rolled_back
 WHERE noted.events < EXCLUDED.events - noted.rolled_back;

-- name: note_ended_moves(epoch, origins)!
-- The present epoch does not count these any more: should it do so again, that begins at 0.
UPDATE moves SET events = 0, rolled_back = rolled_back + events
 WHERE epoch = :epoch AND origin <> ALL (:origins::uuid[]) AND events > 0;

-- name: note_holding(epoch, held, damaged, place)!
-- What is in a spool file now, if it ever accepted anything.
UPDATE epochs
   SET held = :held, damaged = greatest(damaged, :damaged), place = :place, last_seen = now()
 WHERE epoch = :epoch
   AND (held, damaged, place) IS DISTINCT FROM (:held, greatest(damaged, :damaged), :place);

-- name: empty_places(places, epochs)!
-- The file at a place is that of one epoch; nobody can take from the others any more.
UPDATE epochs SET held = 0, last_seen = now()
  FROM unnest(:places::text[], :epochs::uuid[]) AS present (place, epoch)
 WHERE epochs.place = present.place AND epochs.epoch <> present.epoch AND epochs.held > 0;

-- name: empty_wreck(epoch, place, successor)
-- The epochs of a salvaged file: its own or, where it is not known, those of its place before.
UPDATE epochs SET held = 0, last_seen = now()
 WHERE CASE WHEN :epoch::uuid <> '00000000-0000-0000-0000-000000000000'
            THEN epoch = :epoch
            ELSE place = :place AND epoch <> :successor END
RETURNING epoch;

-- name: add_move(origin, epoch, events)!
INSERT INTO moves AS known (origin, epoch, events) VALUES (:origin, :epoch, :events)
ON CONFLICT (origin, epoch) DO UPDATE SET events = known.events + EXCLUDED.events;

-- name: settle(lease_ids)!
-- Deliveries of these leases, and those of days ago, become part of their epochs' totals: none of
-- them comes again. What another settles at this moment is left to it.
WITH closed AS (
    SELECT lease_id FROM deliveries
     WHERE lease_id = ANY (:lease_ids::uuid[]) OR committed_at < now() - interval '2 days'
       FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM deliveries USING closed WHERE deliveries.lease_id = closed.lease_id
    RETURNING epoch, stored, duplicates, dead_lettered, expired
)
INSERT INTO epochs AS total (epoch, stored, duplicates, dead_lettered, expired)
SELECT epoch, sum(stored), sum(duplicates), sum(dead_lettered), sum(expired)
  FROM gone GROUP BY epoch ORDER BY epoch
ON CONFLICT (epoch) DO UPDATE
   SET stored = total.stored + EXCLUDED.stored,
       duplicates = total.duplicates + EXCLUDED.duplicates,
       dead_lettered = total.dead_lettered + EXCLUDED.dead_lettered,
       expired = total.expired + EXCLUDED.expired,
       last_seen = now();

-- name: fold_epochs()!
-- All but the thousand epochs that were seen last become one, under an id that no epoch has.
WITH gone AS (
    DELETE FROM epochs
     WHERE epoch IN (SELECT epoch FROM epochs
                      WHERE epoch NOT IN ('00000000-0000-0000-0000-000000000000',
                                          'ffffffff-ffff-ffff-ffff-ffffffffffff')
                      ORDER BY last_seen DESC OFFSET 1000)
       AND last_seen < now() - interval '3 days'
    RETURNING *
), moved AS (
    DELETE FROM moves USING gone WHERE origin = gone.epoch
    RETURNING origin, events + moves.rolled_back AS events
), folded_moves AS (
    INSERT INTO moves AS folded (origin, epoch, events)
    SELECT 'ffffffff-ffff-ffff-ffff-ffffffffffff', 'ffffffff-ffff-ffff-ffff-ffffffffffff',
           sum(events)
      FROM moved HAVING count(*) > 0
    ON CONFLICT (origin, epoch) DO UPDATE SET events = folded.events + EXCLUDED.events
)
INSERT INTO epochs AS folded (epoch, accepted, rolled_back, stored, duplicates, dead_lettered,
                              expired, held, damaged, first_seen)
SELECT 'ffffffff-ffff-ffff-ffff-ffffffffffff',
       sum(greatest(accepted,
                    stored + duplicates + dead_lettered + expired + held + damaged - rolled_back
                    + (SELECT coalesce(sum(events), 0) FROM moved WHERE origin = gone.epoch))),
       sum(rolled_back), sum(stored), sum(duplicates), sum(dead_lettered), sum(expired),
       sum(held), sum(damaged), min(first_seen)
  FROM gone HAVING count(*) > 0
ON CONFLICT (epoch) DO UPDATE
   SET accepted = folded.accepted + EXCLUDED.accepted,
       rolled_back = folded.rolled_back + EXCLUDED.rolled_back,
       stored = folded.stored + EXCLUDED.stored,
       duplicates = folded.duplicates + EXCLUDED.duplicates,
       dead_lettered = folded.dead_lettered + EXCLUDED.dead_lettered,
       expired = folded.expired + EXCLUDED.expired,
       held = folded.held + EXCLUDED.held,
       damaged = folded.damaged + EXCLUDED.damaged,
       last_seen = now();

-- name: accounts()
-- Every epoch with its totals; `unsettled` is what deliveries with rows of their own have of them.
-- The last three columns belong together: what went on, into which epochs.
SELECT epoch, accepted, rolled_back, stored, duplicates, dead_lettered, expired, unsettled, held,
       damaged, coalesce(into_epochs, '{}') AS into_epochs,
       coalesce(moved, '{}') AS moved, coalesce(moves_rolled_back, '{}') AS moves_rolled_back
  FROM (SELECT epoch, sum(accepted)::bigint AS accepted, sum(rolled_back)::bigint AS rolled_back,
               sum(stored)::bigint AS stored, sum(duplicates)::bigint AS duplicates,
               sum(dead_lettered)::bigint AS dead_lettered, sum(expired)::bigint AS expired,
               sum(unsettled)::bigint AS unsettled, sum(held)::bigint AS held,
               sum(damaged)::bigint AS damaged
          FROM (SELECT epoch, accepted, rolled_back, stored, duplicates, dead_lettered, expired,
                       0 AS unsettled, held, damaged
                  FROM epochs
                UNION ALL
                SELECT epoch, 0, 0, stored, duplicates, dead_lettered, expired,
                       stored + duplicates + dead_lettered + expired, 0, 0
                  FROM deliveries) AS each_part
         GROUP BY epoch) AS totals
  LEFT JOIN (SELECT origin, array_agg(epoch) AS into_epochs, array_agg(events) AS moved,
                    array_agg(rolled_back) AS moves_rolled_back
               FROM moves GROUP BY origin) AS went ON went.origin = totals.epoch
 ORDER BY epoch;
