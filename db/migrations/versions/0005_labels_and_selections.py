"""Jobs have labels, and say which requests of their input they took."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("selection", sa.Text(), nullable=True))
    op.create_table(
        "job_labels",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_labels_job_id")),
        sa.PrimaryKeyConstraint("job_id", "key", name=op.f("pk_job_labels")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        op.f("ix_job_labels_key_value_created_at"), "job_labels", ["key", "value", "created_at", "job_id"]
    )
    op.create_index(op.f("ix_job_labels_key_created_at"), "job_labels", ["key", "created_at", "job_id"])


def downgrade() -> None:
    op.drop_table("job_labels")
    op.drop_column("jobs", "selection")
