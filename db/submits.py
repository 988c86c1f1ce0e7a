"""Writing a job's lines while it is validating: staged in steps, visible only when whole.

Steps and not one transaction, because on SQLite that would keep every worker from writing for as long as a
big file takes. What a crash leaves behind is invisible, and `recovery` deletes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from db import recovery, transitions
from db.database import Database
from db.states import ChunkState, JobState, ResultStatus
from db.tables import chunks, now_s, requests, results
from db.transitions import NewJob

# A submit that is not heard of for so long is taken for dead; while it lives, it renews this a few times over.
SUBMIT_LEASE_S = 60.0


@dataclass(frozen=True)
class NewRequest:
    """One line. `body` is its JSON text; a bad line that is kept has none, but an error's code and message."""

    index: int
    custom_id: str | None
    body: str | None
    error_code: str | None = None
    error_message: str | None = None


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
    new_requests: Sequence[NewRequest],
    new_chunks: Sequence[NewChunk],
) -> None:
    """Add lines and chunks in one transaction; LeaseLostError when the sweeper took the submit for dead."""
    with database.write() as tx:
        transitions.renew_submit(tx, job_id, SUBMIT_LEASE_S)
        tx.execute(
            insert(requests),
            [
                {
                    "job_id": job_id,
                    "index": line.index,
                    "custom_id": line.custom_id,
                    "body": line.body,
                }
                for line in new_requests
            ],
        )
        bad = [line for line in new_requests if line.error_code is not None]
        if bad:
            tx.execute(
                insert(results).values(attempt=0, finished_at=now_s()),
                [
                    {
                        "job_id": job_id,
                        "index": line.index,
                        "status": ResultStatus.FAILED,
                        "error_code": line.error_code,
                        "error_message": line.error_message,
                    }
                    for line in bad
                ],
            )
        if new_chunks:
            tx.execute(
                insert(chunks),
                [
                    {
                        "job_id": job_id,
                        "first_index": chunk.first_index,
                        "num_requests": chunk.num_requests,
                        "num_failed": chunk.num_failed,
                        "state": ChunkState.DONE
                        if chunk.num_failed == chunk.num_requests
                        else ChunkState.QUEUED,
                    }
                    for chunk in new_chunks
                ],
            )


def commit(
    database: Database,
    job_id: str,
    *,
    num_requests: int,
    input_sha256: str,
    idempotency_key: str | None,
) -> bool:
    """Make the job visible. False when another job has the idempotency key: then this one is deleted."""
    try:
        with database.write() as tx:
            transitions.enqueue_job(
                tx,
                job_id,
                num_requests=num_requests,
                input_sha256=input_sha256,
                idempotency_key=idempotency_key,
            )
            transitions.close_job_if_over(tx, job_id, JobState.QUEUED)
    except IntegrityError:
        recovery.discard_staged_job(database, job_id)
        return False
    return True
