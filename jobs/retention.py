"""Deleting jobs that are over, with all their rows."""

import contextlib

from db import queries, recovery, transitions
from db.database import Database
from db.errors import NotFoundError, WrongStateError
from db.queries import Job

_PAGE_JOBS = 100


def delete(database: Database, job_id: str) -> None:
    """Delete a job that is over: invisible at once, then its rows, in steps that do not lock others out.

    After a crash in the middle a sweeper goes on. NotFoundError for a second call, WrongStateError while the job
    is not over: cancel it first.
    """
    try:
        with database.write() as tx:
            transitions.delete_job(tx, job_id)
    except WrongStateError:
        queries.get_job(database, job_id)  # one that is staged, or being deleted, is not there
        raise
    recovery.erase_job(database, job_id)


def prune(database: Database, older_than_s: float, *, is_dry_run: bool) -> list[Job]:
    """Delete the jobs that ended more than `older_than_s` ago; with `is_dry_run` only say which."""
    if is_dry_run:
        return queries.list_finished(database, older_than_s, limit=1_000_000)
    pruned: list[Job] = []
    while page := queries.list_finished(database, older_than_s, _PAGE_JOBS):
        for job in page:
            with contextlib.suppress(NotFoundError):  # somebody else prunes too
                delete(database, job.id)
                pruned.append(job)
    return pruned
