"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:

    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("card_name", sa.Text(), nullable=False),
        sa.Column("card_sha256", sa.String(length=64), nullable=False),
        sa.Column("card", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("input_name", sa.Text(), nullable=False),
        sa.Column("input_sha256", sa.String(length=64), nullable=True),
        sa.Column("num_requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("submit_lease_until", sa.Float(), nullable=True),
        sa.Column("deadline_at", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.CheckConstraint(
            "(state = 'validating') = (submit_lease_until IS NOT NULL)", name=op.f("ck_jobs_submit_lease")
        ),
        sa.CheckConstraint(
            "(state IN ('completed', 'cancelled', 'expired')) = (finished_at IS NOT NULL)",
            name=op.f("ck_jobs_finished"),
        ),
        sa.CheckConstraint(
            "state IN ('validating', 'deleting') OR input_sha256 IS NOT NULL", name=op.f("ck_jobs_whole")
        ),
        sa.CheckConstraint(
            "state IN ('validating', 'queued', 'in_progress', 'cancelling',"
            " 'completed', 'cancelled', 'expired', 'deleting')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint("num_requests >= 0", name=op.f("ck_jobs_num_requests")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_jobs_idempotency_key")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_jobs_created_at"), ["created_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_jobs_state_card_name"), ["state", "card_name"], unique=False)

    op.create_table(
        "requests",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.CheckConstraint('"index" >= 0', name=op.f("ck_requests_index")),
        sa.PrimaryKeyConstraint("job_id", "index", name=op.f("pk_requests")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("requests", schema=None) as batch_op:
        batch_op.create_index(
            "uq_requests_custom_id",
            ["job_id", "custom_id"],
            unique=True,
            postgresql_where=sa.text("custom_id IS NOT NULL"),
            sqlite_where=sa.text("custom_id IS NOT NULL"),
        )

    op.create_table(
        "results",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("finish_reason", sa.String(length=16), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("completion_tokens", sa.Integer(), nullable=True),
        sa.Column("error_code", sa.String(length=32), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=False),
        sa.CheckConstraint(
            "(status = 'failed') = (error_code IS NOT NULL) AND (error_code IS NULL) = (error_message IS NULL)",
            name=op.f("ck_results_error"),
        ),
        sa.CheckConstraint("(status = 'succeeded') = (result IS NOT NULL)", name=op.f("ck_results_result")),
        sa.CheckConstraint("status IN ('succeeded', 'failed')", name=op.f("ck_results_status")),
        sa.PrimaryKeyConstraint("job_id", "index", name=op.f("pk_results")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("card_name", sa.Text(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("heartbeat_at", sa.Float(), nullable=False),
        sa.CheckConstraint(
            "state IN ('starting', 'ready', 'draining', 'stopped', 'gone')", name=op.f("ck_workers_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    with op.batch_alter_table("workers", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_workers_state_heartbeat_at"), ["state", "heartbeat_at"], unique=False
        )

    op.create_table(
        "chunks",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("first_index", sa.BigInteger(), nullable=False),
        sa.Column("num_requests", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("is_suspect", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("is_alone", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("lease_id", sa.String(length=32), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("worker_id", sa.String(length=32), nullable=True),
        sa.Column("num_succeeded", sa.Integer(), server_default="0", nullable=False),
        sa.Column("num_failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.CheckConstraint(
            "(state = 'running') = (lease_id IS NOT NULL)"
            " AND (lease_id IS NULL) = (lease_until IS NULL)"
            " AND (lease_id IS NULL) = (worker_id IS NULL)",
            name=op.f("ck_chunks_lease"),
        ),
        sa.CheckConstraint(
            "NOT is_alone OR (is_suspect AND state = 'running')", name=op.f("ck_chunks_alone")
        ),
        sa.CheckConstraint(
            "state <> 'done' OR num_succeeded + num_failed = num_requests", name=op.f("ck_chunks_done")
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'done', 'cancelled', 'expired')", name=op.f("ck_chunks_state")
        ),
        sa.CheckConstraint(
            "num_requests > 0 AND first_index >= 0 AND attempt >= 0", name=op.f("ck_chunks_range")
        ),
        sa.CheckConstraint(
            "num_succeeded >= 0 AND num_failed >= 0 AND num_succeeded + num_failed <= num_requests",
            name=op.f("ck_chunks_counts"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_chunks_job_id")),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_chunks_worker_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chunks")),
        sa.UniqueConstraint("job_id", "first_index", name=op.f("uq_chunks_job_id_first_index")),
        sa.UniqueConstraint("lease_id", name=op.f("uq_chunks_lease_id")),
    )
    with op.batch_alter_table("chunks", schema=None) as batch_op:
        batch_op.create_index(
            "ix_chunks_queued",
            ["job_id", "id"],
            unique=False,
            postgresql_where=sa.text("state = 'queued'"),
            sqlite_where=sa.text("state = 'queued'"),
        )
        batch_op.create_index(
            "ix_chunks_running",
            ["job_id", "lease_until"],
            unique=False,
            postgresql_where=sa.text("state = 'running'"),
            sqlite_where=sa.text("state = 'running'"),
        )


def downgrade() -> None:

    with op.batch_alter_table("chunks", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_chunks_running",
            postgresql_where=sa.text("state = 'running'"),
            sqlite_where=sa.text("state = 'running'"),
        )
        batch_op.drop_index(
            "ix_chunks_queued",
            postgresql_where=sa.text("state = 'queued'"),
            sqlite_where=sa.text("state = 'queued'"),
        )

    op.drop_table("chunks")
    with op.batch_alter_table("workers", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_workers_state_heartbeat_at"))

    op.drop_table("workers")
    op.drop_table("results")
    with op.batch_alter_table("requests", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_requests_custom_id",
            postgresql_where=sa.text("custom_id IS NOT NULL"),
            sqlite_where=sa.text("custom_id IS NOT NULL"),
        )

    op.drop_table("requests")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobs_state_card_name"))
        batch_op.drop_index(batch_op.f("ix_jobs_created_at"))

    op.drop_table("jobs")
