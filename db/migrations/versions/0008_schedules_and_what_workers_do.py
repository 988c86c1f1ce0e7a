"""Schedules; workers tell what they have done; chunks can be found by when they finished, across all jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_SUMS = ("num_results", "completion_tokens")


def upgrade() -> None:
    for name in _SUMS:
        op.add_column("workers", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("workers", sa.Column("completion_tokens_per_s", sa.Float(), nullable=True))
    is_finished = sa.text("finished_at IS NOT NULL")
    op.create_index(
        op.f("ix_chunks_finished_at"),
        "chunks",
        ["finished_at"],
        postgresql_where=is_finished,
        sqlite_where=is_finished,
    )
    op.create_table(
        "schedules",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("submit", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("due_at", sa.Float(), nullable=False),
        sa.Column("firing_due_at", sa.Float(), nullable=True),
        sa.Column("num_tries", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("lease_id", sa.String(length=32), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("last_fired_at", sa.Float(), nullable=True),
        sa.Column("last_job_id", sa.String(length=32), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("num_fired", sa.BigInteger(), nullable=False, server_default="0"),
        sa.CheckConstraint(
            "(firing_due_at IS NULL) = (lease_id IS NULL) AND (lease_id IS NULL) = (lease_until IS NULL)"
            " AND (lease_id IS NULL) = (num_tries = 0)",
            name=op.f("ck_schedules_lease"),
        ),
        sa.CheckConstraint("firing_due_at IS NULL OR firing_due_at < due_at", name=op.f("ck_schedules_due")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_schedules")),
    )
    for name in ("due_at", "lease_until"):
        op.create_index(op.f(f"ix_schedules_{name}"), "schedules", [name])


def downgrade() -> None:
    op.drop_table("schedules")
    op.drop_index(op.f("ix_chunks_finished_at"), table_name="chunks")
    for name in (*_SUMS, "completion_tokens_per_s"):
        op.drop_column("workers", name)
