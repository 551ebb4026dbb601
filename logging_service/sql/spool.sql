-- name: create_tables()#
CREATE TABLE batches (id INTEGER PRIMARY KEY, sealed BLOB NOT NULL) STRICT;
CREATE TABLE damaged (
    id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, events INTEGER NOT NULL,
    found_at TEXT NOT NULL, bytes BLOB NOT NULL
) STRICT;
CREATE TABLE finished (slot INTEGER PRIMARY KEY, events INTEGER NOT NULL) STRICT;
CREATE TABLE leases (
    id TEXT PRIMARY KEY, boot TEXT NOT NULL, deadline_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL, first_row INTEGER NOT NULL, first_event INTEGER NOT NULL,
    last_row INTEGER NOT NULL, last_event INTEGER NOT NULL, events INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE ledger (
    epoch TEXT PRIMARY KEY, accepted INTEGER NOT NULL, next_row INTEGER NOT NULL,
    head_row INTEGER NOT NULL, head_event INTEGER NOT NULL, waiting INTEGER NOT NULL,
    damaged INTEGER NOT NULL, checksum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- name: tables()
-- What the file consists of, in SQLite's own words.
SELECT name, sql FROM sqlite_schema ORDER BY name;

-- name: faults()$
-- `ok`, or the first thing that is wrong with the file's structure.
PRAGMA quick_check(1);

-- name: pages()^
-- Bytes of a page, pages of the file, pages that are free.
SELECT page_size, page_count, freelist_count
  FROM pragma_page_size, pragma_page_count, pragma_freelist_count;

-- name: ledger()
-- The one row that says what is where.
SELECT epoch, accepted, next_row, head_row, head_event, waiting, damaged, checksum FROM ledger;

-- name: write_ledger(epoch, accepted, next_row, head_row, head_event, waiting, damaged, checksum)!
INSERT INTO ledger (epoch, accepted, next_row, head_row, head_event, waiting, damaged, checksum)
VALUES (:epoch, :accepted, :next_row, :head_row, :head_event, :waiting, :damaged, :checksum)
ON CONFLICT (epoch) DO UPDATE
   SET accepted = :accepted, next_row = :next_row, head_row = :head_row,
       head_event = :head_event, waiting = :waiting, damaged = :damaged, checksum = :checksum;

-- name: add_batch(id, sealed)!
INSERT INTO batches (id, sealed) VALUES (:id, :sealed);

-- name: batches(first, last)
-- Rows in the order of their numbers; `last` is included. A damaged type is no reason to fail.
SELECT id, CAST(sealed AS BLOB) FROM batches WHERE id BETWEEN :first AND :last ORDER BY id;

-- name: count(first, last)$
-- How many rows there are between two numbers; `last` is included.
SELECT count(*) FROM batches WHERE id BETWEEN :first AND :last;

-- name: count_all()$
SELECT count(*) FROM batches;

-- name: replace_batch(id, sealed)!
UPDATE batches SET sealed = :sealed WHERE id = :id;

-- name: remove_batches(first, last)
-- The number of each row that was there; `last` is included.
DELETE FROM batches WHERE id BETWEEN :first AND :last RETURNING id;

-- name: keep_damaged(batch, events, found_at, bytes)!
INSERT INTO damaged (batch, events, found_at, bytes)
VALUES (:batch, :events, :found_at, :bytes);

-- name: damaged()^
-- Damaged rows that were kept, and the events in them that are lost.
SELECT count(*), coalesce(sum(events), 0) FROM damaged;

-- name: leases()
-- Every lease, that of the oldest events first.
SELECT id, boot, deadline_ms, attempts, first_row, first_event, last_row, last_event, events,
       checksum
  FROM leases ORDER BY first_row, first_event;

-- name: write_lease(id, boot, deadline_ms, attempts, first_row, first_event, last_row, last_event, events, checksum)!
INSERT INTO leases (id, boot, deadline_ms, attempts, first_row, first_event, last_row, last_event,
                    events, checksum)
VALUES (:id, :boot, :deadline_ms, :attempts, :first_row, :first_event, :last_row, :last_event,
        :events, :checksum)
ON CONFLICT (id) DO UPDATE
   SET boot = :boot, deadline_ms = :deadline_ms, attempts = :attempts, events = :events,
       checksum = :checksum;

-- name: remove_lease(id)!
DELETE FROM leases WHERE id = :id;

-- name: count_finished(slot, events)!
INSERT INTO finished (slot, events) VALUES (:slot, :events)
ON CONFLICT (slot) DO UPDATE SET events = finished.events + :events;

-- name: forget_finished(first, last)!
-- Slots of long ago, or of before a start of the machine.
DELETE FROM finished WHERE slot NOT BETWEEN :first AND :last;

-- name: finished(first, last)$
-- Events done in these slots; `last` is included.
SELECT coalesce(sum(events), 0) FROM finished WHERE slot BETWEEN :first AND :last;
