"""Running failed requests of a job again, in place."""

from collections.abc import Sequence
from dataclasses import dataclass

from db import queries, retries
from db.database import Database
from db.errors import WrongStateError
from db.queries import Job
from jobs.where import parse_retry


@dataclass(frozen=True)
class Retried:
    """The job as it stands afterwards, and how many of its requests run again."""

    job: Job
    num_retried: int


def retry(database: Database, job_id: str, where: Sequence[str] = ()) -> Retried:
    """Take failed results of a job back, so that their requests run again under it; the others stay.

    By default those whose code is retryable; `where` may name some of these. A crash in the middle leaves the rest
    failed, and a second call goes on. WrongStateError for a job that is cancelled or expired.
    """
    codes = parse_retry(where)
    job = queries.get_job(database, job_id)
    try:
        num = retries.take_back(database, job.id, codes)
    except WrongStateError as error:
        queries.get_job(database, job_id)  # deleted meanwhile, it is not there
        hint = f"What did not succeed runs as a new job by: promptmill rerun {job_id}"
        raise WrongStateError(f"job {job_id}", error.current, error.expected, hint) from error
    return Retried(queries.get_job(database, job_id), num)
