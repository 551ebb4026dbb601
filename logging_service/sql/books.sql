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
)
INSERT INTO epochs AS folded (epoch, accepted, rolled_back, stored, duplicates, dead_lettered,
                              expired, first_seen)
SELECT 'ffffffff-ffff-ffff-ffff-ffffffffffff',
       sum(greatest(accepted, stored + duplicates + dead_lettered + expired - rolled_back)),
       sum(rolled_back), sum(stored), sum(duplicates), sum(dead_lettered), sum(expired),
       min(first_seen)
  FROM gone HAVING count(*) > 0
ON CONFLICT (epoch) DO UPDATE
   SET accepted = folded.accepted + EXCLUDED.accepted,
       rolled_back = folded.rolled_back + EXCLUDED.rolled_back,
       stored = folded.stored + EXCLUDED.stored,
       duplicates = folded.duplicates + EXCLUDED.duplicates,
       dead_lettered = folded.dead_lettered + EXCLUDED.dead_lettered,
       expired = folded.expired + EXCLUDED.expired,
       last_seen = now();

-- name: accounts()
-- Every epoch with its totals; `unsettled` is what deliveries with rows of their own have of them.
SELECT epoch, sum(accepted)::bigint AS accepted, sum(rolled_back)::bigint AS rolled_back,
       sum(stored)::bigint AS stored, sum(duplicates)::bigint AS duplicates,
       sum(dead_lettered)::bigint AS dead_lettered, sum(expired)::bigint AS expired,
       sum(unsettled)::bigint AS unsettled
  FROM (SELECT epoch, accepted, rolled_back, stored, duplicates, dead_lettered, expired,
               0 AS unsettled
          FROM epochs
        UNION ALL
        SELECT epoch, 0, 0, stored, duplicates, dead_lettered, expired,
               stored + duplicates + dead_lettered + expired
          FROM deliveries) AS each_part
 GROUP BY epoch
 ORDER BY epoch;
