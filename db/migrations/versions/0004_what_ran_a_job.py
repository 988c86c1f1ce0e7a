"""Workers tell their engine, weights and hardware, and it is kept which of them ran anything of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("details", sa.Text(), nullable=True))
    op.create_table(
        "job_workers",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("worker_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_workers_job_id")),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_job_workers_worker_id")),
        sa.PrimaryKeyConstraint("job_id", "worker_id", name=op.f("pk_job_workers")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("job_workers")
    op.drop_column("workers", "details")
