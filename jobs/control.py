"""Stopping a job."""

from db import queries, recovery, transitions
from db.database import Database
from db.errors import WrongStateError
from db.queries import Job
from db.states import JobState


def cancel(database: Database, job_id: str) -> Job:
    """Cancel a job, and return it as it then stands; what is finished stays.

    Chunks that run end within a few heartbeats, until then it is cancelling. A second call changes nothing.
    WrongStateError for a job that is completed.
    """
    job = queries.get_job(database, job_id)
    if job.state not in (JobState.CANCELLING, JobState.CANCELLED):
        try:
            with database.write() as tx:
                transitions.cancel_job(tx, job_id)
                transitions.close_job_if_over(tx, job_id, JobState.CANCELLING)
        except WrongStateError as error:
            if error.current not in (JobState.CANCELLING, JobState.CANCELLED):
                raise
    recovery.end_cancel_without_workers(database, job_id)
    return queries.get_job(database, job_id)
