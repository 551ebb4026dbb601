"""Events by day, the committed leases and the dead letters."""

from alembic import op

revision = "0001"
down_revision = None

# Texts are compared byte by byte: a database's own collation costs a tenth of the insert.
STATEMENTS = (
    """
    CREATE TABLE log_events (
        event_id    uuid        NOT NULL,
        timestamp   timestamptz NOT NULL,
        received_at timestamptz NOT NULL,
        event_type  text        COLLATE "C" NOT NULL,
        session_id  text        COLLATE "C",
        source      text        COLLATE "C" NOT NULL,
        trace_id    text        COLLATE "C",
        request_id  text        COLLATE "C",
        redactions  json,
        payload     json        NOT NULL,
        CONSTRAINT idx_log_events_timestamp PRIMARY KEY (timestamp, event_id)
    ) PARTITION BY RANGE (timestamp)
    """,
    "CREATE INDEX idx_log_events_event_type ON log_events (event_type, timestamp)",
    "CREATE INDEX idx_log_events_session_id ON log_events (session_id, timestamp)",
    """
    DO $$ BEGIN
        IF EXISTS (SELECT FROM pg_settings
                    WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)) THEN
            ALTER TABLE log_events ALTER COLUMN payload SET COMPRESSION lz4;
        END IF;
    END $$
    """,
    # One row a transaction: a lease that stands here is stored, whatever the consumer knows.
    """
    CREATE TABLE deliveries (
        lease_id      uuid        PRIMARY KEY,
        committed_at  timestamptz NOT NULL DEFAULT now(),
        stored        bigint     NOT NULL,
        duplicates    bigint     NOT NULL,
        dead_lettered bigint     NOT NULL,
        expired       bigint     NOT NULL
    )
    """,
    """
    CREATE TABLE dead_letters (
        id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        event      bytea       NOT NULL,
        reason     text        NOT NULL,
        detail     text        NOT NULL,
        sqlstate   text,
        attempts   integer     NOT NULL,
        first_seen timestamptz NOT NULL DEFAULT now(),
        last_seen  timestamptz NOT NULL DEFAULT now()
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
