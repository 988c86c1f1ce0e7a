"""Firing what is due: each due time becomes one job, whatever dies on the way.

The claim comes before the submit, and the job's idempotency key names the due time. So a worker that is killed
between leaves a lease, and whoever takes it up finds the job, or makes it.
"""

import logging
import traceback
from collections.abc import Callable

from db import queries, schedules
from db.database import Database
from db.errors import InputError, LeaseLostError, PromptmillError, SettingsError, UnavailableError
from db.queries import Job
from db.schedules import Due, Firing
from jobs.cron import next_due_at
from jobs.keeping import kept_alive
from jobs.schedules import ScheduledSubmit
from jobs.settings import Settings

# Workers that may die over one due time: a file that kills whoever reads it must not end them all, night after night.
_MAX_TRIES = 5

_log = logging.getLogger(__name__)


def fire_next(database: Database, settings: Settings, announce: Callable[[Job], object]) -> bool:
    """Fire one due time; False when there was none to be had. `announce` is told of a job that has something to run.

    UnavailableError when the database is away: the lease ends, and the due time is taken up.
    """
    for due in schedules.list_due(database):
        firing = _take(database, due, settings.lease_s)
        if firing is not None:
            _fire(database, settings, firing, announce)
            return True
    return False


def _take(database: Database, due: Due, lease_s: float) -> Firing | None:
    if due.lease_id is not None:
        return schedules.take_up(database, due, lease_s)
    try:
        next_at = next_due_at(due.cron, due.timezone, due.now)
    except SettingsError as error:  # a zone that another machine knew
        _log.error("schedule %s is left to other workers: %s", due.name, error)
        return None
    return schedules.claim(database, due, next_at, lease_s)


def _fire(database: Database, settings: Settings, firing: Firing, announce: Callable[[Job], object]) -> None:
    try:
        with kept_alive(lambda: schedules.renew(database, firing, settings.lease_s), settings.lease_s):
            job = _job_of(database, settings, firing)
    except (UnavailableError, LeaseLostError) as error:
        _log.warning("schedule %s is tried again once its lease is over: %s", firing.name, error)
        return
    except PromptmillError as error:
        _fail(database, firing, str(error))
        return
    except Exception as error:
        # A bug, or a disk that fails. Its text may quote a request; where it happened does not.
        _log.error("schedule %s:\n%s", firing.name, "".join(traceback.format_tb(error.__traceback__)))
        _fail(database, firing, f"unexpected error: {type(error).__name__}; the worker's log has more")
        return
    _end(lambda: schedules.finish(database, firing, job.id))
    _log.info("schedule %s: %s", firing.name, job.id)
    if not job.state.is_final:
        announce(job)


def _job_of(database: Database, settings: Settings, firing: Firing) -> Job:
    key = f"schedule:{firing.name}:{firing.due_at:.0f}"
    # first, since the file of a job that is there may be gone
    if found := queries.find_job_by_key(database, key):
        return found
    if firing.num_tries > _MAX_TRIES:
        raise InputError(
            f"{_MAX_TRIES} tries to submit it came to no end: their workers died; look at the file"
        )
    scheduled = ScheduledSubmit.from_json(firing.submit)
    return scheduled.run(database, settings, firing.due_at, firing.timezone, key).job


def _fail(database: Database, firing: Firing, error: str) -> None:
    _log.error("schedule %s: %s", firing.name, error)
    _end(lambda: schedules.fail(database, firing, error))


def _end(end: Callable[[], None]) -> None:
    try:
        end()
    except LeaseLostError as error:
        _log.warning("%s", error)
