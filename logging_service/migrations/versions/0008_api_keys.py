"""The keys that were made, their use by the hour, and the number that every change raises."""

from alembic import op

revision = "0008"
down_revision = "0007"

STATEMENTS = (
    # `digest` is the HMAC-SHA-256 of the whole key, `pepper` the fingerprint of what made it.
    # `changed` is the number of the last change to the row.
    """
    CREATE TABLE api_keys (
        id         text        COLLATE "C" PRIMARY KEY CHECK (id ~ '^[a-z0-9]{12}$'),
        name       text        COLLATE "C" NOT NULL,
        project    text        COLLATE "C" NOT NULL CHECK (project <> 'audit'),
        scopes     text[]      NOT NULL,
        digest     bytea       NOT NULL CHECK (octet_length(digest) = 32),
        pepper     bytea       NOT NULL,
        rates      json        NOT NULL,
        networks   text[]      NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        created_by text        NOT NULL,
        expires_at timestamptz,
        revoked_at timestamptz,
        rotated_to text        COLLATE "C",
        changed    bigint      NOT NULL
    )
    """,
    "CREATE INDEX api_keys_changed ON api_keys (changed)",
    "CREATE INDEX api_keys_name ON api_keys (name)",
    # API_KEY and ADMIN_API_KEY are used too, and have no row among the keys.
    """
    CREATE TABLE api_key_uses (
        key_id   text        COLLATE "C" NOT NULL,
        hour     timestamptz NOT NULL,
        requests bigint      NOT NULL,
        PRIMARY KEY (key_id, hour)
    )
    """,
    """
    CREATE TABLE key_changes (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        number   bigint  NOT NULL
    )
    """,
    "INSERT INTO key_changes (number) VALUES (0)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
