"""The tables. Their CHECKs and unique keys repeat the rules, so that a bug is an error and not a wrong row.

Requests, results and generations carry no foreign key to chunks or jobs: on Postgres each row written would lock its
job's row. `transitions.erase_rows` removes them, and `take_back` failed results; nothing else deletes.

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

from db.states import CLAIMABLE_STATES, ChunkState, InputFormat, JobState, ResultStatus, WorkerState


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
    Column("input_format", Text, nullable=False, server_default=InputFormat.CARD.value),
    # a JSON object: defaults for the requests' sampling parameters that this submit gave
    Column("sampling", Text),
    # a JSON object: which requests of the input were taken; NULL is all of them
    Column("selection", Text),
    # whether results of other jobs may be taken for its own
    Column("is_reusing", Boolean, nullable=False, server_default=false()),
    Column("num_requests", BigInteger, nullable=False, server_default="0"),
    # of the rows in results, added up as they are written: with ten million requests nobody can count them again
    Column("num_succeeded", BigInteger, nullable=False, server_default="0"),
    Column("num_failed", BigInteger, nullable=False, server_default="0"),
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    # results that `retry` took back: the positions that they had stay empty
    Column("num_retried", BigInteger, nullable=False, server_default="0"),
    # Of a job that runs requests of another again: the jobs that it comes from, the first one of all and then each
    # that was made of the one before it, with blanks between. All of them, because any may be deleted.
    Column("root_id", String(32)),
    Column("ancestors", Text),
    # of those that succeeded; the tokens are those of the others
    Column("num_reused", BigInteger, nullable=False, server_default="0"),
    Column("submit_lease_until", Float),
    Column("deadline_at", Float),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    CheckConstraint(_one_of("state", JobState), "state"),
    CheckConstraint(_one_of("input_format", InputFormat), "input_format"),
    CheckConstraint("(state = 'validating') = (submit_lease_until IS NOT NULL)", "submit_lease"),
    CheckConstraint("state IN ('validating', 'deleting') OR input_sha256 IS NOT NULL", "whole"),
    CheckConstraint(
        "(state IN ('completed', 'cancelled', 'expired')) = (finished_at IS NOT NULL)", "finished"
    ),
    CheckConstraint(
        "num_succeeded >= 0 AND num_failed >= 0 AND num_succeeded + num_failed <= num_requests", "counts"
    ),
    CheckConstraint("state <> 'completed' OR num_succeeded + num_failed = num_requests", "completed"),
    CheckConstraint("num_retried >= 0", "retried"),
    CheckConstraint("(root_id IS NULL) = (ancestors IS NULL)", "ancestors"),
    Index(
        None,
        "root_id",
        postgresql_where=text("root_id IS NOT NULL"),
        sqlite_where=text("root_id IS NOT NULL"),
    ),
    CheckConstraint("num_reused = 0 OR (num_reused > 0 AND num_reused <= num_succeeded)", "reused"),
    Index(None, "state", "created_at"),
    Index(None, "created_at"),
    Index(None, "finished_at"),
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
Index("ix_jobs_due", jobs.c.deadline_at, postgresql_where=IS_CLAIMABLE, sqlite_where=IS_CLAIMABLE)

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
    # a JSON object: engine, weights and hardware, as the worker found them once its engine was loaded
    Column("details", Text),
    # what it has written since its start, and the rate of its last minute; each heartbeat tells them
    Column("num_results", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens_per_s", Float),
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
    Column("num_reused", Integer, nullable=False, server_default="0"),
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
    CheckConstraint("num_reused = 0 OR (num_reused > 0 AND num_reused <= num_succeeded)", "reused"),
)

# Which workers ran anything of a job: a chunk forgets its worker when it is done.
job_workers = Table(
    "job_workers",
    metadata,
    Column("job_id", String(32), ForeignKey("jobs.id"), primary_key=True),
    Column("worker_id", String(32), ForeignKey("workers.id"), primary_key=True),
    sqlite_with_rowid=False,
)

# `created_at` is the job's, so that the newest jobs with a label are the first ones in an index.
job_labels = Table(
    "job_labels",
    metadata,
    Column("job_id", String(32), ForeignKey("jobs.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("ix_job_labels_key_value_created_at", "key", "value", "created_at", "job_id"),
    Index("ix_job_labels_key_created_at", "key", "created_at", "job_id"),
    sqlite_with_rowid=False,
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
# across all jobs, for what was done in a day
Index("ix_chunks_finished_at", chunks.c.finished_at, postgresql_where=_IS_FINISHED, sqlite_where=_IS_FINISHED)

requests = Table(
    "requests",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("index", BigInteger, primary_key=True, autoincrement=False),
    Column("custom_id", Text),
    # JSON as it was handed in; NULL is a line that was bad under --on-invalid skip
    Column("body", Text),
    # its index in the job `root_id`; NULL in a job that was made of no other
    Column("root_index", BigInteger),
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
    # 1, 2, 3 and so on in the order in which the job's results became durable. None is given twice: at any commit the
    # gaps are the positions of the results that `retry` took back, and there are no others.
    Column("position", BigInteger, nullable=False),
    # what was asked for, where asking again would give the same
    Column("content_key", String(32)),
    # JOB:INDEX of the request that was generated, when this one was not
    Column("reused_from", Text),
    UniqueConstraint("job_id", "position"),
    CheckConstraint("position > 0", "position"),
    CheckConstraint(
        f"status IN ('{ResultStatus.SUCCEEDED.value}', '{ResultStatus.FAILED.value}')",
        "status",
    ),
    CheckConstraint("(status = 'succeeded') = (result IS NOT NULL)", "result"),
    CheckConstraint(
        "(status = 'failed') = (error_code IS NOT NULL) AND (error_code IS NULL) = (error_message IS NULL)",
        "error",
    ),
    CheckConstraint("reused_from IS NULL OR status = 'succeeded'", "reused"),
    sqlite_with_rowid=False,
)

# Which request of a job generates what has this content key, and the lease that it does so under. Once it has a
# result, the result's own key says whether it is that of this content.
generations = Table(
    "generations",
    metadata,
    Column("key", String(32), primary_key=True),
    Column("job_id", String(32), primary_key=True),
    Column("index", BigInteger, nullable=False),
    Column("lease_id", String(32), nullable=False),
    Index(None, "job_id", "index"),
    sqlite_with_rowid=False,
)

IS_FAILED = results.c.status == literal_column(f"'{ResultStatus.FAILED}'")
Index(
    "ix_results_failed",
    results.c.job_id,
    results.c.error_code,
    results.c.index,
    postgresql_where=IS_FAILED,
    sqlite_where=IS_FAILED,
)

schedules = Table(
    "schedules",
    metadata,
    Column("name", Text, primary_key=True),
    Column("cron", Text, nullable=False),
    Column("timezone", Text, nullable=False),
    # a JSON list: the words of the command, as they were given
    Column("arguments", Text, nullable=False),
    # a JSON object: what they mean, for the worker that submits
    Column("submit", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    # the next time by `cron`; a claim moves it on
    Column("due_at", Float, nullable=False),
    # the due time that was claimed and has no job yet, how often that was tried, and the lease of who tries it now
    Column("firing_due_at", Float),
    Column("num_tries", Integer, nullable=False, server_default="0"),
    Column("lease_id", String(32)),
    Column("lease_until", Float),
    Column("last_fired_at", Float),
    # no foreign key: the job may be deleted
    Column("last_job_id", String(32)),
    # None once it went well again
    Column("last_error", Text),
    Column("num_fired", BigInteger, nullable=False, server_default="0"),
    CheckConstraint(
        "(firing_due_at IS NULL) = (lease_id IS NULL) AND (lease_id IS NULL) = (lease_until IS NULL)"
        " AND (lease_id IS NULL) = (num_tries = 0)",
        "lease",
    ),
    CheckConstraint("firing_due_at IS NULL OR firing_due_at < due_at", "due"),
    Index(None, "due_at"),
    Index(None, "lease_until"),
)
