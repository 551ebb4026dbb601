"""What sessions did in each hour, added up afterwards: whoever asks need not read every event."""

from alembic import op

revision = "0010"
down_revision = "0009"

STATEMENTS = (
    # `events`, `changes` and `facts` are what the hour was made of: its number of events, that of
    # `ledger_changes` and the partition of facts. While they are the same, its sums are right.
    """
    CREATE TABLE session_hours (
        hour    timestamptz PRIMARY KEY,
        events  numeric     NOT NULL,
        changes bigint      NOT NULL,
        facts   oid         NOT NULL
    )
    """,
    # A row has what a session and source did in an hour of a UTC day; `is_alone` where this is the
    # only row of the session. What has no session is in a row too.
    """
    CREATE TABLE session_sums (
        day            date        NOT NULL,
        hour           timestamptz NOT NULL,
        session_id     text        COLLATE "C",
        source         text        COLLATE "C" NOT NULL,
        is_alone       boolean     NOT NULL,
        events         numeric     NOT NULL,
        errors         bigint      NOT NULL,
        user_ids       text[]      COLLATE "C",
        queries        numeric     NOT NULL,
        unpriced       bigint      NOT NULL,
        uncached_input numeric     NOT NULL,
        cache_read     numeric     NOT NULL,
        cache_write    numeric     NOT NULL,
        cache_write_1h numeric     NOT NULL,
        output         numeric     NOT NULL,
        reasoning      numeric     NOT NULL,
        unsplit        numeric     NOT NULL,
        cost_nanos     numeric     NOT NULL,
        reported_nanos numeric     NOT NULL,
        best_nanos     numeric     NOT NULL,
        timed          bigint      NOT NULL,
        total_us       numeric     NOT NULL,
        duration_us    bigint[]
    )
    """,
    "CREATE INDEX session_sums_session_id ON session_sums (session_id)",
    "CREATE INDEX session_sums_hour ON session_sums (hour, is_alone)",
    # In the order of a page of groups; the hour is compared in the index.
    """
    CREATE INDEX session_sums_events ON session_sums (day, (- events), session_id, hour)
     WHERE is_alone AND events > 0
    """,
    """
    CREATE INDEX session_sums_cost
        ON session_sums (day, (- best_nanos), (- queries), session_id, hour)
     WHERE is_alone AND queries > 0
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
