"""A job's labels in statements about jobs: as a column beside the others, and to choose jobs by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select

from db.tables import job_labels, jobs


@dataclass(frozen=True)
class LabelFilter:
    """Jobs with a label of this key, and of this value where one is given."""

    key: str
    value: str | None = None


# KEY=VALUE, a line each: no key holds the sign, and neither holds a line's end (jobs/labels.py)
LABELS = (
    select(func.aggregate_strings(job_labels.c.key + "=" + job_labels.c.value, "\n"))
    .where(job_labels.c.job_id == jobs.c.id)
    .correlate(jobs)
    .scalar_subquery()
    .label("labels")
)


def labels_of(column: str | None) -> dict[str, str]:
    """What `LABELS` put together, by key."""
    pairs = (line.partition("=") for line in column.split("\n")) if column else ()
    return {key: value for key, _, value in sorted(pairs)}


def newest_with(statement: Select[Any], labels: Sequence[LabelFilter]) -> Select[Any]:
    """Of `statement`'s jobs those that have all of `labels`, of which there is one at least; newest first.

    They come in the order of the first label's index; the others are looked up for each of its jobs.
    """
    first, *others = labels
    statement = statement.join(job_labels, job_labels.c.job_id == jobs.c.id).where(_holds(first))
    for label in others:
        of_job = select(job_labels.c.key).where(job_labels.c.job_id == jobs.c.id, _holds(label))
        statement = statement.where(of_job.correlate(jobs).scalar_subquery().is_not(None))
    return statement.order_by(job_labels.c.created_at.desc(), job_labels.c.job_id.desc())


def _holds(label: LabelFilter) -> ColumnElement[bool]:
    of_key = job_labels.c.key == label.key
    return of_key if label.value is None else of_key & (job_labels.c.value == label.value)
