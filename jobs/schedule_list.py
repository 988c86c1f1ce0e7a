"""The schedules, as `promptmill schedule list` shows them."""

import time
from collections.abc import Sequence

from db.schedules import Schedule
from jobs.cron import explain
from jobs.shown.table import local_minute, print_table, span

_TITLES = ("NAME", "CRON", "NEXT", "LAST JOB", "FIRED", "LAST ERROR")


def describe_added(schedule: Schedule) -> str:
    """One line: what was understood, and when it comes."""
    when = f"{explain(schedule.cron)} ({schedule.timezone})"
    return f"schedule {schedule.name}: {when}; next {_next(schedule)}"


def print_schedules(schedules: Sequence[Schedule]) -> None:
    rows = [
        (
            schedule.name,
            schedule.cron if schedule.timezone == "UTC" else f"{schedule.cron} {schedule.timezone}",
            "firing now" if schedule.is_firing else _next(schedule),
            schedule.last_job_id or "",
            _fired(schedule),
            schedule.last_error or "",
        )
        for schedule in schedules
    ]
    print_table(_TITLES, rows, flexible=("LAST ERROR", "NAME"))


def _next(schedule: Schedule) -> str:
    left_s = schedule.due_at - time.time()
    return f"{local_minute(schedule.due_at)}, " + (
        f"in {span(left_s)}" if left_s > 0 else "when a worker runs"
    )


def _fired(schedule: Schedule) -> str:
    if schedule.last_fired_at is None:
        return "never"
    return f"{span(time.time() - schedule.last_fired_at)} ago"
