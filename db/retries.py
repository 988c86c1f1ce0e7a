"""Failed requests of a job that run again in place: their results are taken back, in steps.

Steps and not one transaction, which on SQLite would keep every worker from writing for as long as a big job takes. Each
step leaves a job as if it were all: with what was taken back queued, and the rest failed as before. So a crash in
between leaves nothing to mend, and another call goes on.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, select

from db import transitions
from db.database import Database
from db.errors import WrongStateError
from db.outcomes import read_extent
from db.states import CLAIMABLE_STATES, JOB_ARROWS, ChunkState, JobState
from db.tables import chunks
from db.transitions import Tally

# As many requests a step: where all of them failed, it takes some milliseconds.
_STEP_REQUESTS = 5_000
# A job that is under way may be one whose retry crashed, or one whose workers are faster than this.
RETRIED_STATES = JOB_ARROWS["retry"].sources | frozenset(CLAIMABLE_STATES)

_CHUNKS = (
    select(chunks.c.id, chunks.c.first_index, chunks.c.num_requests)
    .where(
        chunks.c.job_id == bindparam("job_id"),
        chunks.c.first_index >= bindparam("first"),
        chunks.c.first_index < bindparam("end"),
        chunks.c.state == ChunkState.DONE,
        chunks.c.num_failed > 0,
    )
    .order_by(chunks.c.id)
)


def take_back(database: Database, job_id: str, error_codes: Sequence[str]) -> int:
    """Take back the failed results with one of these codes, and queue their chunks; how many there were.

    Those of chunks that are not done are left alone. WrongStateError when the job is cancelled, expired or deleted,
    also in the middle: then what was taken back by then came to the same as everything else without a result.
    """
    num_taken = 0
    for first in range(0, read_extent(database, job_id).num_requests, _STEP_REQUESTS):
        with database.write() as tx:
            num_taken += _step(tx, job_id, error_codes, first)
    return num_taken


def _step(tx: Connection, job_id: str, error_codes: Sequence[str], first: int) -> int:
    """For the chunks that begin within so many requests from `first` on: how many results were taken back."""
    state = transitions.lock_job(tx, job_id)
    if state not in RETRIED_STATES:
        raise WrongStateError(f"job {job_id}", state, frozenset(RETRIED_STATES))
    taken = Tally()
    within = {"job_id": job_id, "first": first, "end": first + _STEP_REQUESTS}
    for chunk_id, first_index, num_requests in tx.execute(_CHUNKS, within).all():
        tally = transitions.take_back(tx, job_id, first_index, num_requests, error_codes)
        if tally.num_results:
            transitions.retry_chunk(tx, chunk_id, tally)
            taken += tally
    if taken.num_results and state is JobState.COMPLETED:
        transitions.retry_job(tx, job_id, taken)
    elif taken.num_results:
        transitions.uncount_results(tx, job_id, taken)
    return taken.num_results
