"""The tables. Their CHECKs and unique keys repeat the rules, so that a bug is an error and not a wrong row.

Requests and results carry no foreign key to chunks or jobs: on Postgres each row written would lock its
job's row. `transitions.erase_rows` removes them; nothing else deletes.

Every `x_at` is in seconds since 1970 UTC, by the database's clock: only that clock judges leases.
"""

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    ScalarSelect,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    literal_column,
    select,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

from db.states import CLAIMABLE_STATES, ChunkState, JobState, ResultStatus, WorkerState


class now_s(FunctionElement[float]):  # noqa: N801  reads as the SQL function that it is
    """The database's clock in seconds since 1970; in Postgres the clock itself, not the transaction's start."""

    type = Float()
    inherit_cache = True


@compiles(now_s, "postgresql")
def _now_postgresql(element: now_s, compiler: SQLCompiler, **_: object) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


@compiles(now_s, "sqlite")
def _now_sqlite(element: now_s, compiler: SQLCompiler, **_: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


def the_time() -> ScalarSelect[float]:
    """`now_s` as a subquery, evaluated once a statement. To compare an indexed column with: a clock that moves while
    a statement runs cannot be looked up in an index."""
    return select(now_s()).scalar_subquery()


def _one_of(column: str, states: type[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(state.value) for state in states)})"


# SQLite numbers rows by itself only in an INTEGER column
_SerialInteger = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", Text),
    Column("state", String(16), nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("card_name", Text, nullable=False),
    Column("card_sha256", String(64), nullable=False),
    Column("card", Text, nullable=False),
    Column("idempotency_key", Text, unique=True),
    Column("input_name", Text, nullable=False),
    Column("input_sha256", String(64)),
    Column("num_requests", BigInteger, nullable=False, server_default="0"),
    # of the rows in results, added up as they are written: with ten million requests nobody can count them again
    Column("num_succeeded", BigInteger, nullable=False, server_default="0"),
    Column("num_failed", BigInteger, nullable=False, server_default="0"),
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    Column("submit_lease_until", Float),
    Column("deadline_at", Float),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    CheckConstraint(_one_of("state", JobState), "state"),
    CheckConstraint("(state = 'validating') = (submit_lease_until IS NOT NULL)", "submit_lease"),
    CheckConstraint("state IN ('validating', 'deleting') OR input_sha256 IS NOT NULL", "whole"),
    CheckConstraint(
        "(state IN ('completed', 'cancelled', 'expired')) = (finished_at IS NOT NULL)", "finished"
    ),
    CheckConstraint(
        "num_succeeded >= 0 AND num_failed >= 0 AND num_succeeded + num_failed <= num_requests", "counts"
    ),
    CheckConstraint("state <> 'completed' OR num_succeeded + num_failed = num_requests", "completed"),
    Index(None, "state", "created_at"),
    Index(None, "created_at"),
    Index(None, "finished_at"),
    Index(None, "deadline_at"),
    Index(None, "input_sha256"),
)

# Word for word what stands in the partial indexes: neither database uses such an index for a bound value.
IS_CLAIMABLE = jobs.c.state.in_([literal_column(f"'{state}'") for state in CLAIMABLE_STATES])
Index(
    "ix_jobs_claimable",
    jobs.c.card_name,
    jobs.c.priority.desc(),
    jobs.c.created_at,
    jobs.c.id,
    postgresql_where=IS_CLAIMABLE,
    sqlite_where=IS_CLAIMABLE,
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("card_name", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("heartbeat_at", Float, nullable=False),
    CheckConstraint(_one_of("state", WorkerState), "state"),
    Index(None, "state", "heartbeat_at"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("id", _SerialInteger, primary_key=True, autoincrement=True),
    Column("job_id", String(32), ForeignKey("jobs.id"), nullable=False),
    Column("first_index", BigInteger, nullable=False),
    Column("num_requests", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False, server_default="0"),
    # its worker died often; it runs alone from now on
    Column("is_suspect", Boolean, nullable=False, server_default=false()),
    # it does so right now
    Column("is_alone", Boolean, nullable=False, server_default=false()),
    Column("lease_id", String(32), unique=True),
    Column("lease_until", Float),
    Column("worker_id", String(32), ForeignKey("workers.id")),
    Column("num_succeeded", Integer, nullable=False, server_default="0"),
    Column("num_failed", Integer, nullable=False, server_default="0"),
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    Column("started_at", Float),
    Column("finished_at", Float),
    UniqueConstraint("job_id", "first_index"),
    CheckConstraint(_one_of("state", ChunkState), "state"),
    CheckConstraint(
        "(state = 'running') = (lease_id IS NOT NULL)"
        " AND (lease_id IS NULL) = (lease_until IS NULL)"
        " AND (lease_id IS NULL) = (worker_id IS NULL)",
        "lease",
    ),
    CheckConstraint("num_requests > 0 AND first_index >= 0 AND attempt >= 0", "range"),
    CheckConstraint(
        "num_succeeded >= 0 AND num_failed >= 0 AND num_succeeded + num_failed <= num_requests",
        "counts",
    ),
    CheckConstraint("NOT is_alone OR (is_suspect AND state = 'running')", "alone"),
    CheckConstraint("state <> 'done' OR num_succeeded + num_failed = num_requests", "done"),
)

IS_QUEUED = chunks.c.state == literal_column(f"'{ChunkState.QUEUED}'")
IS_RUNNING = chunks.c.state == literal_column(f"'{ChunkState.RUNNING}'")
Index("ix_chunks_queued", chunks.c.job_id, chunks.c.id, postgresql_where=IS_QUEUED, sqlite_where=IS_QUEUED)
Index(
    "ix_chunks_running",
    chunks.c.job_id,
    chunks.c.lease_until,
    postgresql_where=IS_RUNNING,
    sqlite_where=IS_RUNNING,
)


def _has_chunk(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a job has such a chunk. Not EXISTS, which Postgres may turn into a join with every chunk there is."""
    of_job = select(chunks.c.id).where(chunks.c.job_id == jobs.c.id, condition).limit(literal_column("1"))
    return of_job.correlate(jobs).scalar_subquery().is_not(None)


HAS_QUEUED_CHUNK = _has_chunk(IS_QUEUED)
HAS_RUNNING_CHUNK = _has_chunk(IS_RUNNING)
HAS_ALL_RESULTS = jobs.c.num_succeeded + jobs.c.num_failed == jobs.c.num_requests

_IS_FINISHED = chunks.c.finished_at.is_not(None)
Index(
    "ix_chunks_finished",
    chunks.c.job_id,
    chunks.c.finished_at,
    postgresql_where=_IS_FINISHED,
    sqlite_where=_IS_FINISHED,
)

requests = Table(
    "requests",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("index", BigInteger, primary_key=True, autoincrement=False),
    Column("custom_id", Text),
    # JSON as it was handed in; NULL is a line that was bad under --on-invalid skip
    Column("body", Text),
    CheckConstraint('"index" >= 0', "index"),
    Index(
        "uq_requests_custom_id",
        "job_id",
        "custom_id",
        unique=True,
        postgresql_where=text("custom_id IS NOT NULL"),
        sqlite_where=text("custom_id IS NOT NULL"),
    ),
    sqlite_with_rowid=False,
)

results = Table(
    "results",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("index", BigInteger, primary_key=True, autoincrement=False),
    Column("status", String(16), nullable=False),
    # the JSON text of the result line's `result`
    Column("result", Text),
    Column("finish_reason", String(16)),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("error_code", String(32)),
    Column("error_message", Text),
    Column("attempt", Integer, nullable=False),
    Column("finished_at", Float, nullable=False),
    CheckConstraint(
        f"status IN ('{ResultStatus.SUCCEEDED.value}', '{ResultStatus.FAILED.value}')",
        "status",
    ),
    CheckConstraint("(status = 'succeeded') = (result IS NOT NULL)", "result"),
    CheckConstraint(
        "(status = 'failed') = (error_code IS NOT NULL) AND (error_code IS NULL) = (error_message IS NULL)",
        "error",
    ),
    sqlite_with_rowid=False,
)
