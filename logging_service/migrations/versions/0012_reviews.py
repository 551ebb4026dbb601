"""The reviews of the gateway: what was asked, what was found, the event that tells of the end."""

from alembic import op

revision = "0012"
down_revision = "0011"

STATEMENTS = (
    # `stored_at` and `event_due_at` are by the server's clock. `event` is the `review_completed` as
    # it is posted; while it has to be, `event_due_at` says when. `request_sha256` is of what has to
    # be the same when `idempotency_digest` comes again.
    """
    CREATE TABLE reviews (
        review_id          uuid        PRIMARY KEY,
        session_id         text        COLLATE "C" NOT NULL,
        project            text        COLLATE "C" NOT NULL,
        instance           uuid        NOT NULL,
        status             text        COLLATE "C" NOT NULL CHECK (
            status IN ('running', 'completed', 'degraded', 'failed', 'interrupted')),
        created_at         timestamptz NOT NULL,
        content_key        text        COLLATE "C" NOT NULL,
        code_sha256        text        COLLATE "C" NOT NULL,
        code_length        integer     NOT NULL,
        submission         json        NOT NULL,
        code               json,
        user_id            text        COLLATE "C",
        request_id         text        COLLATE "C",
        idempotency_digest bytea       CHECK (octet_length(idempotency_digest) = 32),
        request_sha256     text        COLLATE "C",
        finished_at        timestamptz,
        from_cache         boolean     NOT NULL,
        verdict            text        COLLATE "C",
        outline            json,
        result             json,
        feedback           json,
        usage              json,
        cost_nanos         bigint      CHECK (cost_nanos >= 0),
        event              json,
        event_sent_at      timestamptz,
        event_refused      text,
        event_due_at       timestamptz,
        stored_at          timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX reviews_created_at ON reviews (created_at, review_id) INCLUDE (cost_nanos)",
    "CREATE INDEX reviews_project ON reviews (project, created_at, review_id)",
    "CREATE INDEX reviews_session_id ON reviews (session_id, created_at)",
    "CREATE INDEX reviews_user_id ON reviews (user_id, created_at) WHERE user_id IS NOT NULL",
    """
    CREATE UNIQUE INDEX reviews_idempotency ON reviews (project, idempotency_digest)
     WHERE idempotency_digest IS NOT NULL
    """,
    """
    CREATE INDEX reviews_content ON reviews (content_key, project, created_at)
     WHERE status = 'completed' AND NOT from_cache
    """,
    "CREATE INDEX reviews_running ON reviews (stored_at) WHERE status = 'running'",
    "CREATE INDEX reviews_event_due ON reviews (event_due_at) WHERE event_due_at IS NOT NULL",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
