"""Which runs of a consumer began a delivery that came again, and did not end in order."""

from alembic import op

revision = "0005"
down_revision = "0004"

STATEMENTS = (
    "ALTER TABLE trials ADD COLUMN begun_by uuid[] NOT NULL DEFAULT '{}'",
    # What is stored event by event already goes on that way.
    "UPDATE trials SET begun_by = array_fill(lease_id, ARRAY[6])",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
