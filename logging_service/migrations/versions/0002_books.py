"""What queues accepted and what became of it, by epoch; letters that are known again."""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    # One row for each time that a queue began anew. `accepted` is the queue's own count as it was
    # read last; what it was lower than before is `rolled_back`. The rest are the totals of
    # deliveries whose own rows are gone. The epoch of zeros has what nobody told an epoch of.
    """
    CREATE TABLE epochs (
        epoch         uuid        PRIMARY KEY,
        accepted      bigint      NOT NULL DEFAULT 0,
        rolled_back   bigint      NOT NULL DEFAULT 0,
        stored        bigint      NOT NULL DEFAULT 0,
        duplicates    bigint      NOT NULL DEFAULT 0,
        dead_lettered bigint      NOT NULL DEFAULT 0,
        expired       bigint      NOT NULL DEFAULT 0,
        first_seen    timestamptz NOT NULL DEFAULT now(),
        last_seen     timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    ALTER TABLE deliveries
      ADD COLUMN epoch uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
    """,
    """
    WITH folded AS (
        DELETE FROM deliveries WHERE lease_id = '00000000-0000-0000-0000-000000000000'
        RETURNING stored, duplicates, dead_lettered, expired
    )
    INSERT INTO epochs (epoch, stored, duplicates, dead_lettered, expired)
    SELECT '00000000-0000-0000-0000-000000000000', stored, duplicates, dead_lettered, expired
      FROM folded
    """,
    # Letters of before have no digest: a replay of theirs that fails makes a letter of its own.
    """
    ALTER TABLE dead_letters
      ADD COLUMN digest bytea,
      ADD COLUMN event_type text COLLATE "C",
      ADD COLUMN replayed_at timestamptz
    """,
    "CREATE UNIQUE INDEX dead_letters_same ON dead_letters (digest, reason)",
    "CREATE INDEX dead_letters_open ON dead_letters (reason, id) WHERE replayed_at IS NULL",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
