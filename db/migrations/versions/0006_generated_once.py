"""Requests that say the same are generated once: who generates what, what is a copy, and how many are.

Each column comes with its rule in one statement, which both databases take, and which a DROP COLUMN takes back.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_NUM_REUSED = (
    "DEFAULT '0' NOT NULL CONSTRAINT {name}"
    " CHECK (num_reused = 0 OR (num_reused > 0 AND num_reused <= num_succeeded))"
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("is_reusing", sa.Boolean(), server_default=sa.false(), nullable=False))
    for table, kind in (("jobs", "BIGINT"), ("chunks", "INTEGER")):
        rule = _NUM_REUSED.format(name=f"ck_{table}_reused")
        op.execute(f"ALTER TABLE {table} ADD COLUMN num_reused {kind} {rule}")
    op.add_column("results", sa.Column("content_key", sa.String(length=32), nullable=True))
    op.execute(
        "ALTER TABLE results ADD COLUMN reused_from TEXT"
        " CONSTRAINT ck_results_reused CHECK (reused_from IS NULL OR status = 'succeeded')"
    )
    op.create_table(
        "generations",
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("index", sa.BigInteger(), nullable=False),
        sa.Column("lease_id", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("key", "job_id", name=op.f("pk_generations")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_generations_job_id_index"), "generations", ["job_id", "index"])


def downgrade() -> None:
    op.drop_table("generations")
    op.drop_column("results", "reused_from")
    op.drop_column("results", "content_key")
    for table in ("chunks", "jobs"):
        op.drop_column(table, "num_reused")
    op.drop_column("jobs", "is_reusing")
