"""Schedules: which are due, and who fires one. Each function is one transaction.

A due time is claimed by moving `due_at` on from it, so that it is claimed once, whoever sees it. Until its job is
stored it stays in the row under a lease: should the worker die meanwhile, another takes it up, and the job's
idempotency key makes it one job.
"""

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    delete,
    insert,
    literal_column,
    select,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError

from db.database import Database
from db.errors import LeaseLostError, NotFoundError, SettingsError
from db.tables import now_s, schedules, the_time

# looked at by a worker at once
_MAX_DUE = 50
_NOT_FIRING = {"firing_due_at": None, "lease_id": None, "lease_until": None, "num_tries": 0}


@dataclass(frozen=True)
class NewSchedule:
    """`arguments` and `submit` are JSON text."""

    name: str
    cron: str
    timezone: str
    arguments: str
    submit: str
    due_at: float


@dataclass(frozen=True)
class Schedule(NewSchedule):
    """`last_error` is None once it went well again; `is_firing`: a due time is claimed and its job not stored yet."""

    created_at: float
    is_firing: bool
    last_fired_at: float | None
    last_job_id: str | None
    last_error: str | None
    num_fired: int


@dataclass(frozen=True)
class Due:
    """A schedule that is to be fired `now`; `lease_id` is that of a worker which claimed it and was not heard of
    since."""

    name: str
    cron: str
    timezone: str
    due_at: float
    lease_id: str | None
    now: float


@dataclass(frozen=True)
class Firing:
    """The right to fire one due time; `lease_id` is the fence. `num_tries` counts the workers that had it."""

    name: str
    timezone: str
    submit: str
    due_at: float
    num_tries: int
    lease_id: str


_FIRING_COLUMNS = (
    schedules.c.name,
    schedules.c.timezone,
    schedules.c.submit,
    schedules.c.firing_due_at,
    schedules.c.num_tries,
    schedules.c.lease_id,
)


def read_clock(database: Database) -> float:
    """The database's time, by which schedules are due."""
    with database.read() as tx:
        return tx.execute(select(now_s())).scalar_one()


def add(database: Database, new: NewSchedule, *, replace: bool) -> None:
    """SettingsError when there is one of that name, unless it is to be replaced; a due time of the old one that is
    being fired still becomes a job."""
    try:
        with database.write() as tx:
            if replace:
                tx.execute(delete(schedules).where(schedules.c.name == new.name))
            tx.execute(insert(schedules).values(**vars(new), created_at=now_s()))
    except IntegrityError as error:
        raise SettingsError(
            f"there is a schedule {new.name}; --replace puts this one in its place"
        ) from error


def remove(database: Database, name: str) -> None:
    with database.write() as tx:
        if tx.execute(delete(schedules).where(schedules.c.name == name)).rowcount == 0:
            raise _no_such_schedule(name)


def get(database: Database, name: str) -> Schedule:
    found = _find(database, schedules.c.name == name)
    if not found:
        raise _no_such_schedule(name)
    return found[0]


def list_all(database: Database) -> list[Schedule]:
    """By name."""
    return _find(database)


def _find(database: Database, *which: ColumnElement[bool]) -> list[Schedule]:
    with database.read() as tx:
        rows = tx.execute(select(schedules).where(*which).order_by(schedules.c.name)).all()
    return [
        Schedule(
            row.name,
            row.cron,
            row.timezone,
            row.arguments,
            row.submit,
            row.due_at,
            row.created_at,
            row.firing_due_at is not None,
            row.last_fired_at,
            row.last_job_id,
            row.last_error,
            row.num_fired,
        )
        for row in rows
    ]


def _no_such_schedule(name: str) -> NotFoundError:
    return NotFoundError(
        f"there is no schedule {name}; promptmill schedule list shows the schedules there are"
    )


def list_due(database: Database) -> list[Due]:
    """What is to be fired, the longest due first: due times, and those whose worker's lease is over."""
    with database.read() as tx:
        return [Due(*row) for row in tx.execute(_DUE)]


def _list_due() -> Select[Any]:
    """In two parts, each the first rows of an index, however many schedules there are."""
    now = the_time()
    columns = (schedules.c.name, schedules.c.cron, schedules.c.timezone, schedules.c.due_at)

    def first(column: ColumnElement[float], *conditions: ColumnElement[bool]) -> Select[Any]:
        found = select(*columns, schedules.c.lease_id, now.label("now")).where(*conditions)
        return select(found.order_by(column).limit(literal_column(str(_MAX_DUE))).subquery())

    both = union_all(
        first(schedules.c.due_at, schedules.c.firing_due_at.is_(None), schedules.c.due_at <= now),
        first(schedules.c.lease_until, schedules.c.lease_until < now),
    ).subquery()
    return select(both).order_by(both.c.due_at, both.c.name)


_DUE = _list_due()


def claim(database: Database, due: Due, next_due_at: float, lease_s: float) -> Firing | None:
    """Take a due time, and move the schedule on to its next one; None when somebody else was faster, or changed it."""
    is_as_seen = (schedules.c.cron == due.cron) & (schedules.c.timezone == due.timezone)
    is_unclaimed = (schedules.c.due_at == due.due_at) & schedules.c.firing_due_at.is_(None)
    return _take(
        database,
        due,
        lease_s,
        is_as_seen & is_unclaimed,
        due_at=next_due_at,
        firing_due_at=due.due_at,
        num_tries=1,
    )


def take_up(database: Database, due: Due, lease_s: float) -> Firing | None:
    """Take a due time over from a worker that is not heard of; None when somebody else did, or when it is back."""
    is_dead = (schedules.c.lease_id == due.lease_id) & (schedules.c.lease_until < now_s())
    return _take(database, due, lease_s, is_dead, num_tries=schedules.c.num_tries + 1)


def _take(
    database: Database, due: Due, lease_s: float, guard: ColumnElement[bool], **values: Any
) -> Firing | None:
    taken = (
        update(schedules)
        .where(schedules.c.name == due.name, guard)
        .values(lease_id=uuid.uuid4().hex, lease_until=now_s() + lease_s, **values)
    )
    with database.write() as tx:
        row = tx.execute(taken.returning(*_FIRING_COLUMNS)).one_or_none()
    return None if row is None else Firing(*row)


def renew(database: Database, firing: Firing, lease_s: float) -> None:
    """LeaseLostError when another worker took it up."""
    with database.write() as tx:
        _change(tx, firing, lease_until=now_s() + lease_s)


def finish(database: Database, firing: Firing, job_id: str) -> None:
    """It has become this job; LeaseLostError as for `renew`."""
    with database.write() as tx:
        _change(tx, firing, **_NOT_FIRING, **_fired(job_id))


def fail(database: Database, firing: Firing, error: str) -> None:
    """No job comes of this due time, and the next one will come; LeaseLostError as for `renew`."""
    with database.write() as tx:
        _change(tx, firing, **_NOT_FIRING, last_fired_at=now_s(), last_error=error)


def _change(tx: Connection, firing: Firing, **values: Any) -> None:
    mine = (schedules.c.name == firing.name) & (schedules.c.lease_id == firing.lease_id)
    if tx.execute(update(schedules).where(mine).values(**values)).rowcount == 0:
        raise LeaseLostError(f"schedule {firing.name}: another worker took it up, or it was removed")


def note_fired(database: Database, name: str, job_id: str) -> None:
    """Somebody fired it by hand; nothing happens when it was removed since."""
    with database.write() as tx:
        tx.execute(update(schedules).where(schedules.c.name == name).values(**_fired(job_id)))


def _fired(job_id: str) -> dict[str, Any]:
    return {
        "last_fired_at": now_s(),
        "last_job_id": job_id,
        "last_error": None,
        "num_fired": schedules.c.num_fired + 1,
    }
