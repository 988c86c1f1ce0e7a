"""Results have positions, jobs the dialect of their input and sampling defaults.

Results that are there already get their positions in input order: in which order they came is not known any more.
SQLite cannot add a column without a default: there the table is made anew, as 0002 does and says.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_FORMATS = "input_format IN ('card', 'openai', 'cloudflare', 'array', 'csv', 'parquet')"
# the table's columns before this migration
_RESULT_COLUMNS = (
    'job_id, "index", status, result, finish_reason, prompt_tokens, completion_tokens, error_code, error_message,'
    " attempt, finished_at"
)
_NUMBERED = 'row_number() OVER (PARTITION BY job_id ORDER BY "index")'


def upgrade() -> None:
    # with its rule in one statement, which both databases take, and which a DROP COLUMN takes back
    op.execute(
        "ALTER TABLE jobs ADD COLUMN input_format TEXT DEFAULT 'card' NOT NULL"
        f" CONSTRAINT ck_jobs_input_format CHECK ({_FORMATS})"
    )
    op.add_column("jobs", sa.Column("sampling", sa.Text(), nullable=True))
    if op.get_bind().dialect.name == "sqlite":
        _make_results_anew(with_position=True)
        return
    op.add_column("results", sa.Column("position", sa.BigInteger(), nullable=True))
    op.execute(
        f"UPDATE results SET position = numbered.position"  # noqa: S608  our own names
        f' FROM (SELECT job_id, "index", {_NUMBERED} AS position FROM results) AS numbered'
        ' WHERE results.job_id = numbered.job_id AND results."index" = numbered."index"'
    )
    op.alter_column("results", "position", nullable=False)
    op.create_unique_constraint(op.f("uq_results_job_id_position"), "results", ["job_id", "position"])
    op.create_check_constraint(op.f("ck_results_position"), "results", "position > 0")


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        _make_results_anew(with_position=False)
    else:
        op.drop_column("results", "position")
    op.drop_column("jobs", "sampling")
    op.drop_column("jobs", "input_format")


def _make_results_anew(*, with_position: bool) -> None:
    more: list[sa.schema.SchemaItem] = []
    if with_position:
        more = [
            sa.Column("position", sa.BigInteger(), nullable=False),
            sa.UniqueConstraint("job_id", "position", name=op.f("uq_results_job_id_position")),
            sa.CheckConstraint("position > 0", name=op.f("ck_results_position")),
        ]
    op.create_table(
        "results_new",
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
        *more,
        sqlite_with_rowid=False,
    )
    into, numbered = (", position", f", {_NUMBERED}") if with_position else ("", "")
    op.execute(
        f"INSERT INTO results_new ({_RESULT_COLUMNS}{into})"  # noqa: S608  our own names
        f' SELECT {_RESULT_COLUMNS}{numbered} FROM results ORDER BY job_id, "index"'
    )
    op.drop_table("results")
    op.rename_table("results_new", "results")
