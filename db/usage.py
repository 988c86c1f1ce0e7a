"""What was done when: sums over the chunks that finished in a time, without a look at their results."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from db.database import Database
from db.tables import chunks, job_labels, jobs
from db.transitions import Tally

_SUMS = ("num_succeeded", "num_failed", "prompt_tokens", "completion_tokens")


class Group(StrEnum):
    """What the sums are told apart by."""

    CARD = "card"
    LABEL = "label"


# A job's id, and beside it the name of a group that the job is in; what a job has several of counts in each.
_NAMES: dict[Group, tuple[ColumnElement[Any], ColumnElement[Any]]] = {
    Group.CARD: (jobs.c.id, jobs.c.card_name),
    Group.LABEL: (job_labels.c.job_id, job_labels.c.key + "=" + job_labels.c.value),
}


@dataclass(frozen=True)
class Usage:
    """Of the group of this `name`, in the time that began at `began_at`."""

    began_at: float
    name: str
    tally: Tally


def list_usage(database: Database, bounds: Sequence[float], group: Group = Group.CARD) -> list[Usage]:
    """The sums of each time between two `bounds`, in their order, where anything finished; then by name.

    A chunk counts where it finished. One that never did, of a job that was cancelled or expired, counts nowhere, nor
    does what was deleted.
    """
    with database.read() as tx:
        return [one for begin, end in pairwise(bounds) for one in _between(tx, begin, end, group)]


def _between(tx: Connection, begin: float, end: float, group: Group) -> list[Usage]:
    # job by job first: a chunk's job would be looked up for each chunk
    by_job = (
        select(chunks.c.job_id, *(func.sum(chunks.c[name]).label(name) for name in _SUMS))
        .where(chunks.c.finished_at >= begin, chunks.c.finished_at < end)
        .group_by(chunks.c.job_id)
        .subquery()
    )
    job_id, name = _NAMES[group]
    statement = (
        select(name, *(func.sum(by_job.c[column]) for column in _SUMS))
        .select_from(by_job)
        .join(job_id.table, job_id == by_job.c.job_id)
        .group_by(name)
        .order_by(name)
    )
    return [Usage(begin, row[0], Tally(*map(int, row[1:]))) for row in tx.execute(statement)]
