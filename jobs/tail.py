"""The last results of a job, and then each as it finishes."""

from collections.abc import Iterator

from db import outcomes
from db.database import Database
from db.outcomes import Outcome
from jobs.follow import follow_outcomes


def tail(database: Database, job_id: str, num_last: int) -> Iterator[Outcome]:
    """The `num_last` newest results, then each new one, until the job is over. Requests that never ran have no result.

    NotFoundError for a job that is not there.
    """
    extent = outcomes.read_extent(database, job_id)
    after = outcomes.position_before(database, extent, num_last)
    found = follow_outcomes(database, job_id, after, ran_only=True)
    return (outcome for outcome in found if outcome is not None)
