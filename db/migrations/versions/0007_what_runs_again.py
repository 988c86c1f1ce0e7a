"""Jobs know which job they run requests of again, and how many of their results a retry took back.

The code of before takes a result's position from the number of results: going down, gaps are closed.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_OUT_OF_THE_WAY = 2**40


def upgrade() -> None:
    # each with its rule in one statement, which both databases take, and which a DROP COLUMN takes back
    op.execute(
        "ALTER TABLE jobs ADD COLUMN num_retried BIGINT DEFAULT '0' NOT NULL"
        " CONSTRAINT ck_jobs_retried CHECK (num_retried >= 0)"
    )
    op.add_column("jobs", sa.Column("root_id", sa.String(length=32), nullable=True))
    op.execute(
        "ALTER TABLE jobs ADD COLUMN ancestors TEXT"
        " CONSTRAINT ck_jobs_ancestors CHECK ((root_id IS NULL) = (ancestors IS NULL))"
    )
    has_root = sa.text("root_id IS NOT NULL")
    op.create_index(
        op.f("ix_jobs_root_id"), "jobs", ["root_id"], postgresql_where=has_root, sqlite_where=has_root
    )
    op.add_column("requests", sa.Column("root_index", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    # in two steps, since each row is held against all others at once: out of the way, and then to their places
    with_gaps = "job_id IN (SELECT id FROM jobs WHERE num_retried > 0)"
    op.execute(f"UPDATE results SET position = position + {_OUT_OF_THE_WAY} WHERE {with_gaps}")  # noqa: S608  our own names
    number = "row_number() OVER (PARTITION BY job_id ORDER BY position) AS position"
    numbered = f'SELECT job_id, "index", {number} FROM results WHERE {with_gaps}'  # noqa: S608
    op.execute(
        f"UPDATE results SET position = numbered.position FROM ({numbered}) AS numbered"  # noqa: S608
        ' WHERE results.job_id = numbered.job_id AND results."index" = numbered."index"'
    )
    op.drop_column("requests", "root_index")
    op.drop_index(op.f("ix_jobs_root_id"), "jobs")
    op.drop_column("jobs", "ancestors")
    op.drop_column("jobs", "root_id")
    op.drop_column("jobs", "num_retried")
