"""What was used and what it cost: facts of events, the ledger of model calls, the roll-ups."""

from alembic import op

revision = "0006"
down_revision = "0005"

# A model call's own sums, as roll-ups have them. Nobody's mistake may overflow a sum: numeric.
_CALL_SUMS = """
        queries        bigint  NOT NULL,
        unpriced       bigint  NOT NULL,
        uncached_input numeric NOT NULL,
        cache_read     numeric NOT NULL,
        cache_write    numeric NOT NULL,
        cache_write_1h numeric NOT NULL,
        output         numeric NOT NULL,
        reasoning      numeric NOT NULL,
        unsplit        numeric NOT NULL,
        cost_nanos     numeric NOT NULL,
        reported_nanos numeric NOT NULL,
        best_nanos     numeric NOT NULL
"""
# `durations` are DDSketch bins with their counts, {"230": 4, …}.
_TIMES = """
        timed     bigint  NOT NULL,
        failed    bigint  NOT NULL,
        total_us  numeric NOT NULL,
        max_us    bigint  NOT NULL,
        durations json    NOT NULL
"""


def _roll_up(subject: str, keys: str, columns: str) -> tuple[str, ...]:
    """Return the statements for a roll-up and for what is yet to be folded into it."""
    table, deltas = f"{subject}_rollup", f"{subject}_deltas"
    columns_of_keys = "".join(f'{key} text COLLATE "C" NOT NULL,' for key in keys.split())
    return (
        # `span` is 15, 60 or 1440 minutes, from `bucket` on.
        f"""
        CREATE TABLE {table} (span smallint NOT NULL, bucket timestamptz NOT NULL,
                              {columns_of_keys} {columns},
                              PRIMARY KEY (span, bucket, {", ".join(keys.split())}))
        """,
        f"CREATE TABLE {deltas} (bucket timestamptz NOT NULL, {columns_of_keys} {columns})",
    )


STATEMENTS = (
    """
    CREATE TABLE event_facts (
        timestamp   timestamptz NOT NULL,
        session_id  text        COLLATE "C",
        event_type  text        COLLATE "C" NOT NULL,
        source      text        COLLATE "C" NOT NULL,
        user_id     text        COLLATE "C",
        duration_us bigint,
        is_failed   boolean     NOT NULL
    ) PARTITION BY RANGE (timestamp)
    """,
    # The rows come nearly in time order.
    """
    CREATE INDEX event_facts_timestamp ON event_facts USING brin (timestamp)
      WITH (pages_per_range = 16)
    """,
    # Entry 0 is the call; each further one corrects the cost: what it changes stands in it, so
    # that sums over all entries are the present state.
    """
    CREATE TABLE llm_calls (
        timestamp       timestamptz NOT NULL,
        event_id        uuid        NOT NULL,
        entry           integer     NOT NULL,
        recorded_at     timestamptz NOT NULL DEFAULT now(),
        session_id      text        COLLATE "C",
        source          text        COLLATE "C" NOT NULL,
        user_id         text        COLLATE "C",
        provider        text        COLLATE "C",
        model           text        COLLATE "C",
        queries         smallint    NOT NULL,
        unpriced        smallint    NOT NULL,
        uncached_input  bigint      NOT NULL,
        cache_read      bigint      NOT NULL,
        cache_write     bigint      NOT NULL,
        cache_write_1h  bigint      NOT NULL,
        output          bigint      NOT NULL,
        reasoning       bigint      NOT NULL,
        unsplit         bigint      NOT NULL,
        cost_nanos      bigint,
        reported_nanos  bigint,
        best_nanos      bigint,
        price_source    text        COLLATE "C",
        unpriced_reason text        COLLATE "C",
        fault           text        COLLATE "C",
        reported_fault  text        COLLATE "C",
        service         text        COLLATE "C",
        has_media       boolean     NOT NULL,
        is_told         boolean     NOT NULL,
        duration_us     bigint,
        is_failed       boolean     NOT NULL,
        CONSTRAINT llm_calls_key PRIMARY KEY (timestamp, event_id, entry)
    ) PARTITION BY RANGE (timestamp)
    """,
    """
    CREATE TABLE review_facts (
        timestamp   timestamptz NOT NULL,
        event_id    uuid        NOT NULL,
        session_id  text        COLLATE "C",
        source      text        COLLATE "C" NOT NULL,
        user_id     text        COLLATE "C",
        duration_us bigint,
        is_failed   boolean     NOT NULL,
        errors      bigint,
        warnings    bigint,
        infos       bigint,
        PRIMARY KEY (timestamp, event_id)
    )
    """,
    # The row of event type '' has all types together. `sessions` and `users` are the smallest
    # hashes of the different ones, eight bytes each.
    *_roll_up(
        "usage",
        "source event_type",
        f"events bigint NOT NULL, errors bigint NOT NULL, {_TIMES},"
        " sessions bytea NOT NULL, users bytea NOT NULL",
    ),
    # Events without a user stand under the user ''. Times are those of model calls, here and in
    # `llm_rollup`.
    *_roll_up(
        "user",
        "source user_id",
        f"events bigint NOT NULL, errors bigint NOT NULL, {_CALL_SUMS}, {_TIMES},"
        " sessions bytea NOT NULL",
    ),
    # Where it was not told, provider or model is ''.
    *_roll_up("llm", "source provider model", f"{_CALL_SUMS}, {_TIMES}"),
    # Days whose events were removed, in part or all: their roll-ups cannot be made anew.
    "CREATE TABLE thinned_days (day date PRIMARY KEY)",
    # One row. Whoever changes what was counted before adds one to it in the same transaction.
    "CREATE TABLE ledger_changes (number bigint NOT NULL)",
    "INSERT INTO ledger_changes VALUES (0)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
