"""What goes on in a job right now, and why its requests failed; each answer comes out of an index."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, select

from db.database import Database
from db.queries import Job
from db.tables import IS_FAILED, IS_RUNNING, chunks, jobs, now_s, requests, results, workers

_MOST_COUNTED = 10_000


@dataclass(frozen=True)
class WorkerShare:
    """What a worker runs of a job. `num_requests` are those without a result yet."""

    worker_id: str
    host: str
    num_chunks: int
    num_requests: int


@dataclass(frozen=True)
class Activity:
    """`elapsed_s`: since the job's first claim, None before it. `failures`: requests by code, of each code counted up
    to one more than `most_counted`."""

    elapsed_s: float | None
    running: tuple[WorkerShare, ...]
    failures: dict[str, int]
    most_counted: int = _MOST_COUNTED


@dataclass(frozen=True)
class FailedRequest:
    index: int
    custom_id: str | None
    message: str


@dataclass(frozen=True)
class FailureGroup:
    """All requests of a job that failed with one code; `examples` are the first of them."""

    code: str
    num: int
    examples: tuple[FailedRequest, ...]


def read_activity(database: Database, job: Job) -> Activity:
    """Cheap enough to be asked once a second: it looks at what runs, and at a bounded number of failures."""
    since = func.coalesce(jobs.c.finished_at, now_s()) - jobs.c.started_at
    with database.read() as tx:
        elapsed_s = tx.execute(select(since).where(jobs.c.id == job.id)).scalar()
        running = () if job.state.is_final else tuple(_running(tx, job.id))
        failures = _count_failures(tx, job.id) if job.counts.failed else {}
    return Activity(elapsed_s, running, failures)


def _running(tx: Connection, job_id: str) -> Iterator[WorkerShare]:
    num_open = func.sum(chunks.c.num_requests - chunks.c.num_succeeded - chunks.c.num_failed)
    statement = (
        select(workers.c.id, workers.c.host, func.count().label("num"), num_open)
        .join_from(chunks, workers, chunks.c.worker_id == workers.c.id)
        .where(chunks.c.job_id == job_id, IS_RUNNING)
        .group_by(workers.c.id, workers.c.host)
        .order_by(func.count().desc(), workers.c.id)
    )
    for worker_id, host, num_chunks, num_requests in tx.execute(statement):
        yield WorkerShare(worker_id, host, num_chunks, int(num_requests))


def _count_failures(tx: Connection, job_id: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for code in _codes(tx, job_id):
        some = select(results.c.index).where(*_failed_with(job_id, code)).limit(_MOST_COUNTED + 1)
        found[code] = tx.execute(select(func.count()).select_from(some.subquery())).scalar_one()
    return found


def _codes(tx: Connection, job_id: str) -> Iterator[str]:
    """Each code by a look at the index's next entry after the last one: there are a few, of millions of failures."""
    of_job = [results.c.job_id == job_id, IS_FAILED]
    first = select(results.c.error_code).where(*of_job).order_by(results.c.error_code).limit(1)
    code = tx.execute(first).scalar()
    while code is not None:
        yield code
        code = tx.execute(first.where(results.c.error_code > code)).scalar()


def _failed_with(job_id: str, code: str) -> tuple[ColumnElement[bool], ...]:
    return (results.c.job_id == job_id, IS_FAILED, results.c.error_code == code)


def find_failures(database: Database, job_id: str, num_examples: int) -> list[FailureGroup]:
    """The failed requests of a job by code, the most frequent one first. Counts each failure, by the index alone."""
    counted = (
        select(results.c.error_code, func.count())
        .where(results.c.job_id == job_id, IS_FAILED)
        .group_by(results.c.error_code)
    )
    with database.read() as tx:
        groups = [
            FailureGroup(code, num, tuple(_examples(tx, job_id, code, num_examples)))
            for code, num in tx.execute(counted).all()
        ]
    return sorted(groups, key=lambda group: (-group.num, group.code))


def _examples(tx: Connection, job_id: str, code: str, limit: int) -> Iterator[FailedRequest]:
    some = (
        select(results.c.index, requests.c.custom_id, results.c.error_message)
        .join_from(
            results, requests, (requests.c.job_id == results.c.job_id) & (requests.c.index == results.c.index)
        )
        .where(*_failed_with(job_id, code))
        .order_by(results.c.index)
        .limit(limit)
    )
    for row in tx.execute(some):
        yield FailedRequest(*row)
