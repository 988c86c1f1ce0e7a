"""Failed results are found by their code: an index that only they are in."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_IS_FAILED = sa.text("status = 'failed'")


def upgrade() -> None:
    op.create_index(
        "ix_results_failed",
        "results",
        ["job_id", "error_code", "index"],
        postgresql_where=_IS_FAILED,
        sqlite_where=_IS_FAILED,
    )


def downgrade() -> None:
    op.drop_index("ix_results_failed", "results")
