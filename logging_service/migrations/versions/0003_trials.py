"""How far a delivery has come that is stored event by event."""

from alembic import op

revision = "0003"
down_revision = "0002"

# `place` is the event that comes next, from 0; `tried_by` has the runs that began it and did not
# come to an end. The counts are those of the events before it.
STATEMENTS = (
    """
    CREATE TABLE trials (
        lease_id      uuid        PRIMARY KEY,
        place         integer     NOT NULL DEFAULT 0,
        tried_by      uuid[]      NOT NULL,
        tried_at      timestamptz NOT NULL DEFAULT now(),
        stored        bigint      NOT NULL DEFAULT 0,
        duplicates    bigint      NOT NULL DEFAULT 0,
        dead_lettered bigint      NOT NULL DEFAULT 0,
        expired       bigint      NOT NULL DEFAULT 0
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
