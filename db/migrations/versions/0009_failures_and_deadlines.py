"""Failed results are found by their code, and jobs under way by their deadline: indexes that only they are in."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_IS_FAILED = sa.text("status = 'failed'")
_IS_CLAIMABLE = sa.text("state IN ('queued', 'in_progress')")


def upgrade() -> None:
    op.create_index(
        "ix_results_failed",
        "results",
        ["job_id", "error_code", "index"],
        postgresql_where=_IS_FAILED,
        sqlite_where=_IS_FAILED,
    )
    op.drop_index("ix_jobs_deadline_at", "jobs")
    op.create_index(
        "ix_jobs_due", "jobs", ["deadline_at"], postgresql_where=_IS_CLAIMABLE, sqlite_where=_IS_CLAIMABLE
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_due", "jobs")
    op.create_index("ix_jobs_deadline_at", "jobs", ["deadline_at"])
    op.drop_index("ix_results_failed", "results")
