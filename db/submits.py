"""Writing a job's lines while it is validating: staged in steps, visible only when whole.

Steps and not one transaction, because on SQLite that would keep every worker from writing for as long as a
big file takes. What a crash leaves behind is invisible, and `recovery` deletes it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import IntegrityError

from db import recovery, transitions
from db.bulk import insert_rows
from db.database import Database
from db.states import ChunkState, InputFormat, JobState, ResultStatus
from db.tables import chunks, now_s, requests, results
from db.transitions import NewJob

# A submit that is not heard of for so long is taken for dead; while it lives, it renews this a few times over.
SUBMIT_LEASE_S = 60.0

_REQUEST_COLUMNS = ("job_id", "index", "custom_id", "body")


@dataclass(slots=True)  # there are millions: a frozen one takes four times as long to make
class NewRequest:
    """One line. `body` is its JSON text; a bad line that is kept has none, but an error's code and message."""

    index: int
    custom_id: str | None
    body: str | None
    error_code: str | None = None
    error_message: str | None = None
    # of a job that runs requests of another again
    root_index: int | None = None


@dataclass(frozen=True)
class NewChunk:
    """A run of consecutive lines, the unit of lease."""

    first_index: int
    num_requests: int
    num_failed: int


def begin(database: Database, job: NewJob) -> None:
    with database.write() as tx:
        transitions.stage_job(tx, job, SUBMIT_LEASE_S)


def renew(database: Database, job_id: str) -> None:
    """Keep the submit from being taken for dead while it has nothing to add; LeaseLostError when it was."""
    with database.write() as tx:
        transitions.renew_submit(tx, job_id, SUBMIT_LEASE_S)


def add(
    database: Database,
    job_id: str,
    new_requests: Iterable[NewRequest],
    new_chunks: Sequence[NewChunk],
    *,
    has_root: bool = False,
) -> None:
    """Add lines and chunks in one transaction; LeaseLostError when the sweeper took the submit for dead.

    Postgres stores each line while the next is made. `new_chunks` is looked at after the last one, and may grow
    until then. `has_root` says that the lines have a `root_index`.
    """
    bad: list[NewRequest] = []
    columns = (*_REQUEST_COLUMNS, "root_index") if has_root else _REQUEST_COLUMNS
    rows = _rows(job_id, new_requests, bad, has_root=has_root)
    if database.is_sqlite:
        rows = iter(list(rows))  # before the lock is taken that keeps every worker from writing
    with database.write() as tx:
        insert_rows(tx, requests, columns, rows)
        # After the lines, which may take their time: until the end nobody waits for the job's row. Without a lease
        # none of it stays.
        transitions.renew_submit(tx, job_id, SUBMIT_LEASE_S)
        if bad:
            _add_failed(tx, job_id, bad)
        insert_rows(
            tx,
            chunks,
            ("job_id", "first_index", "num_requests", "num_failed", "state"),
            [
                (
                    job_id,
                    chunk.first_index,
                    chunk.num_requests,
                    chunk.num_failed,
                    ChunkState.DONE if chunk.num_failed == chunk.num_requests else ChunkState.QUEUED,
                )
                for chunk in new_chunks
            ],
        )


def _rows(
    job_id: str, new_requests: Iterable[NewRequest], bad: list[NewRequest], *, has_root: bool
) -> Iterator[tuple[object, ...]]:
    for line in new_requests:
        if line.error_code is not None:
            bad.append(line)
        row = (job_id, line.index, line.custom_id, line.body)
        yield (*row, line.root_index) if has_root else row


def _add_failed(tx: Connection, job_id: str, bad: Sequence[NewRequest]) -> None:
    last = select(func.coalesce(func.max(results.c.position), 0)).where(results.c.job_id == job_id)
    now, num_before = tx.execute(select(now_s(), last.scalar_subquery())).one()
    insert_rows(
        tx,
        results,
        ("job_id", "index", "status", "error_code", "error_message", "attempt", "finished_at", "position"),
        [
            (job_id, line.index, ResultStatus.FAILED, line.error_code, line.error_message, 0, now, position)
            for position, line in enumerate(bad, num_before + 1)
        ],
    )


def commit(
    database: Database,
    job_id: str,
    *,
    num_requests: int,
    num_failed: int,
    input_sha256: str,
    idempotency_key: str | None,
    input_format: InputFormat = InputFormat.CARD,
) -> bool:
    """Make the job visible; `num_failed` of its lines were bad, and kept. False when another job has the
    idempotency key: then this one is deleted."""
    try:
        with database.write() as tx:
            transitions.enqueue_job(
                tx,
                job_id,
                num_requests=num_requests,
                num_failed=num_failed,
                input_sha256=input_sha256,
                idempotency_key=idempotency_key,
                input_format=input_format,
            )
            transitions.close_job_if_over(tx, job_id, JobState.QUEUED)
    except IntegrityError:
        recovery.discard_staged_job(database, job_id)
        return False
    return True
