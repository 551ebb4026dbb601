-- Statements for whichever table of the ledger: its name and columns stand in braces.

-- name: lock_folding
-- Whether this transaction alone may rewrite roll-ups from now on.
SELECT pg_try_advisory_xact_lock($1)

-- name: look_up
-- Each key is looked up in the roll-up, however the planner thinks of the two.
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off

-- name: take_deltas
-- Some of what waits, taken out and added up by key.
WITH taken AS (
    DELETE FROM {deltas}
     WHERE ctid = ANY (ARRAY(SELECT ctid FROM {deltas} LIMIT $1))
    RETURNING *
)
SELECT {keys}, count(*) AS rows, {sums} FROM taken GROUP BY {keys}

-- name: take_rows
-- The rows of a span under these keys, taken out: they are put back with more in them.
DELETE FROM {table} AS kept
 USING unnest({values}) AS wanted ({columns})
 WHERE kept.span = $1 AND {same}
RETURNING kept.*

-- name: keys_in
-- Of these times and ids, those that have an entry.
SELECT DISTINCT event_id, timestamp
  FROM {table} JOIN unnest($1::timestamptz[], $2::uuid[]) AS wanted (timestamp, event_id)
       USING (timestamp, event_id)
