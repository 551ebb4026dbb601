"""What spool files hold, and what went from one queue into another."""

from alembic import op

revision = "0004"
down_revision = "0003"

STATEMENTS = (
    # `held` and `damaged` of a spool file's epoch are as they were noted last; `place` is where
    # that file is or was.
    """
    ALTER TABLE epochs
      ADD COLUMN place   text COLLATE "C",
      ADD COLUMN held    bigint NOT NULL DEFAULT 0,
      ADD COLUMN damaged bigint NOT NULL DEFAULT 0
    """,
    # How many events of the epoch `origin` were accepted again, in `epoch` of another queue. The
    # epoch of zeros has those that were salvaged.
    """
    CREATE TABLE moves (
        origin      uuid   NOT NULL,
        epoch       uuid   NOT NULL,
        events      bigint NOT NULL,
        rolled_back bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (origin, epoch)
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
