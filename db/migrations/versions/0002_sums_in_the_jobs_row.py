"""A job's sums stand in its row, and chunks are not cancelled or expired any more: that is read from their job.

SQLite cannot change a CHECK in place: there the two tables are made anew and filled from the old ones, with foreign
keys switched off by `db.upgrade`, as SQLite's own page on ALTER TABLE says.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SUMS = ("num_succeeded", "num_failed", "prompt_tokens", "completion_tokens")
_NEW_JOB_INDEXES = {
    "ix_jobs_state_created_at": ["state", "created_at"],
    "ix_jobs_finished_at": ["finished_at"],
    "ix_jobs_deadline_at": ["deadline_at"],
    "ix_jobs_input_sha256": ["input_sha256"],
}
_NEW_CHUNK_STATES = "state IN ('queued', 'running', 'done')"
_OLD_CHUNK_STATES = "state IN ('queued', 'running', 'done', 'cancelled', 'expired')"
_COUNTS = "num_succeeded >= 0 AND num_failed >= 0 AND num_succeeded + num_failed <= num_requests"
_COMPLETED = "state <> 'completed' OR num_succeeded + num_failed = num_requests"
_IS_CLAIMABLE = "state IN ('queued', 'in_progress')"
_IS_FINISHED = "finished_at IS NOT NULL"


def upgrade() -> None:
    for name in _SUMS:
        op.add_column("jobs", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    _sum_up()
    op.execute(
        "UPDATE chunks SET state = 'queued', finished_at = NULL WHERE state IN ('cancelled', 'expired')"
    )
    op.drop_index("ix_jobs_state_card_name", "jobs")
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_jobs(with_sums=True)
        _rebuild_chunks(_NEW_CHUNK_STATES)
    else:
        op.drop_constraint(op.f("ck_jobs_num_requests"), "jobs")
        op.create_check_constraint(op.f("ck_jobs_counts"), "jobs", _COUNTS)
        op.create_check_constraint(op.f("ck_jobs_completed"), "jobs", _COMPLETED)
        op.drop_constraint(op.f("ck_chunks_state"), "chunks")
        op.create_check_constraint(op.f("ck_chunks_state"), "chunks", _NEW_CHUNK_STATES)
    for name, columns in _NEW_JOB_INDEXES.items():
        op.create_index(name, "jobs", columns)
    op.create_index(
        "ix_jobs_claimable",
        "jobs",
        ["card_name", sa.text("priority DESC"), "created_at", "id"],
        postgresql_where=sa.text(_IS_CLAIMABLE),
        sqlite_where=sa.text(_IS_CLAIMABLE),
    )
    op.create_index(
        "ix_chunks_finished",
        "chunks",
        ["job_id", "finished_at"],
        postgresql_where=sa.text(_IS_FINISHED),
        sqlite_where=sa.text(_IS_FINISHED),
    )


def downgrade() -> None:
    op.drop_index("ix_chunks_finished", "chunks")
    op.drop_index("ix_jobs_claimable", "jobs")
    for name in _NEW_JOB_INDEXES:
        op.drop_index(name, "jobs")
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_chunks(_OLD_CHUNK_STATES)
        _rebuild_jobs(with_sums=False)
    else:
        op.drop_constraint(op.f("ck_chunks_state"), "chunks")
        op.create_check_constraint(op.f("ck_chunks_state"), "chunks", _OLD_CHUNK_STATES)
        op.drop_constraint(op.f("ck_jobs_completed"), "jobs")
        op.drop_constraint(op.f("ck_jobs_counts"), "jobs")
        op.create_check_constraint(op.f("ck_jobs_num_requests"), "jobs", "num_requests >= 0")
        for name in _SUMS:
            op.drop_column("jobs", name)
    op.execute(
        "UPDATE chunks SET state = (SELECT state FROM jobs WHERE id = job_id) WHERE state = 'queued'"
        " AND EXISTS (SELECT 1 FROM jobs WHERE id = job_id AND state IN ('cancelled', 'expired'))"
    )
    op.create_index("ix_jobs_state_card_name", "jobs", ["state", "card_name"])


def _sum_up() -> None:
    sums = ", ".join(
        f"{name} = coalesce((SELECT sum({name}) FROM chunks WHERE job_id = jobs.id), 0)"  # noqa: S608  our own names
        for name in _SUMS
    )
    # one that is still being submitted has no number of requests yet
    op.execute(f"UPDATE jobs SET {sums} WHERE state NOT IN ('validating', 'deleting')")  # noqa: S608  the same


def _rebuild_jobs(*, with_sums: bool) -> None:
    sums: list[sa.Column[Any]] = []
    checks = [sa.CheckConstraint("num_requests >= 0", name=op.f("ck_jobs_num_requests"))]
    if with_sums:
        sums = [sa.Column(name, sa.BigInteger(), server_default="0", nullable=False) for name in _SUMS]
        checks = [
            sa.CheckConstraint(_COUNTS, name=op.f("ck_jobs_counts")),
            sa.CheckConstraint(_COMPLETED, name=op.f("ck_jobs_completed")),
        ]
    _rebuild(
        "jobs",
        [
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
            *sums,
            sa.Column("submit_lease_until", sa.Float(), nullable=True),
            sa.Column("deadline_at", sa.Float(), nullable=True),
            sa.Column("created_at", sa.Float(), nullable=False),
            sa.Column("started_at", sa.Float(), nullable=True),
            sa.Column("finished_at", sa.Float(), nullable=True),
        ],
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
        *checks,
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_jobs_idempotency_key")),
    )
    op.create_index("ix_jobs_created_at", "jobs", ["created_at"])


def _rebuild_chunks(states: str) -> None:
    _rebuild(
        "chunks",
        [
            sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
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
        ],
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
        sa.CheckConstraint(states, name=op.f("ck_chunks_state")),
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
    for name, columns, where in (
        ("ix_chunks_queued", ["job_id", "id"], "state = 'queued'"),
        ("ix_chunks_running", ["job_id", "lease_until"], "state = 'running'"),
    ):
        op.create_index(name, "chunks", columns, sqlite_where=sa.text(where))


def _rebuild(table: str, columns: list[sa.Column[Any]], *rules: sa.Constraint) -> None:
    names = ", ".join(column.name for column in columns)
    op.create_table(f"{table}_new", *columns, *rules)
    op.execute(f"INSERT INTO {table}_new ({names}) SELECT {names} FROM {table}")  # noqa: S608  our own names
    op.drop_table(table)
    op.rename_table(f"{table}_new", table)
