"""What was done and has to be audited, until it is forwarded as an event of its own."""

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS = (
    # A row is written in the transaction of the deed; its event's id is made of `timestamp` and
    # `event_id`, so that what is forwarded twice is the same event.
    """
    CREATE TABLE audit_outbox (
        number     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        event_id   uuid        NOT NULL DEFAULT gen_random_uuid(),
        timestamp  timestamptz NOT NULL DEFAULT clock_timestamp(),
        event_type text        COLLATE "C" NOT NULL,
        payload    json        NOT NULL
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
