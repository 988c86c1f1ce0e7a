"""What a schedule submits, and how a person adds one, looks at them and fires one by hand."""

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter

from db import schedules
from db.database import Database
from db.errors import SettingsError
from db.schedules import NewSchedule, Schedule
from jobs.cards import Card, find_card
from jobs.cron import local_time, next_due_at
from jobs.dialects.rows import check_reading
from jobs.dialects.templates import Template
from jobs.paths import expand as expand_patterns
from jobs.progress import format_time
from jobs.settings import Settings
from jobs.submit import SubmitOptions, Submitted, submit

_MAX_NAME_CHARS = 200


@dataclass(frozen=True)
class ScheduledSubmit:
    """A submit whose words are understood, so that a worker needs no command line: absolute paths, a card's name, and
    the options, of which the job's name may hold strftime's codes."""

    paths: tuple[str, ...]
    card_name: str
    options: SubmitOptions

    @classmethod
    def of(cls, paths: Sequence[str], card: Card, options: SubmitOptions) -> Self:
        """Relative to the folder we are in. SettingsError for what nobody could run at night."""
        if "-" in paths:
            raise SettingsError("a schedule has no stdin when it is due; give a file")
        if options.once or options.idempotency_key:
            raise SettingsError(
                "--once and --idempotency-key have no place in a schedule: each due time is one job already"
            )
        options.sampling_text(card)
        check_reading(options.reading)
        if options.reading.template is not None:
            Template(options.reading.template)
        errors_path = None if options.errors_path is None else _absolute(options.errors_path)
        return cls(
            tuple(_absolute(path) for path in paths), card.name, replace(options, errors_path=errors_path)
        )

    def to_json(self) -> str:
        return _STORED.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "ScheduledSubmit":
        return _STORED.validate_json(text)

    def missing(self) -> list[str]:
        """The files that are not there now, and the patterns that none matches."""
        return [path for path in self.paths if not (Path(path).exists() or glob.glob(path, recursive=True))]  # noqa: PTH207  as expand

    def run(
        self, database: Database, settings: Settings, at: float, timezone: str, key: str | None
    ) -> Submitted:
        """Submit it as of `at`, with this machine's settings and its card of that name; raises as `submit` does."""
        name = self.options.name
        options = replace(self.options, name=name and expand(name, at, timezone), idempotency_key=key)
        card = find_card(settings.home, self.card_name)
        return submit(database, settings, card, expand_patterns(self.paths), options)


_STORED = TypeAdapter(ScheduledSubmit)


def _absolute(path: str) -> str:
    folder = str(Path.cwd())
    # of a pattern the folder it was given in is no part
    is_pattern = glob.has_magic(path) and not Path(path).exists()
    return str(Path(glob.escape(folder) if is_pattern else folder) / path)


def expand(name: str, at: float, timezone: str) -> str:
    """`nightly-%F` as `nightly-2026-11-26`: strftime's codes, in the schedule's own time zone."""
    return local_time(at, timezone).strftime(name) if "%" in name else name


def add(
    database: Database,
    name: str,
    cron: str,
    timezone: str,
    arguments: Sequence[str],
    scheduled: ScheduledSubmit,
    *,
    replace: bool,
) -> Schedule:
    """Keep a schedule, from its next due time on. SettingsError for a cron line, a time zone or a name that is wrong,
    and for a name that is taken, unless it is to be replaced."""
    if not name or len(name) > _MAX_NAME_CHARS or not name.isprintable():
        raise SettingsError(f"a schedule's name is 1 to {_MAX_NAME_CHARS} printable characters")
    due_at = next_due_at(cron, timezone, schedules.read_clock(database))
    expand(scheduled.options.name or "", due_at, timezone)
    try:
        stored = scheduled.to_json()
    except ValueError:
        raise SettingsError("a schedule's words are kept as UTF-8, and these are not") from None
    new = NewSchedule(name, cron, timezone, json.dumps(list(arguments)), stored, due_at)
    schedules.add(database, new, replace=replace)
    return schedules.get(database, name)


def run_now(database: Database, settings: Settings, name: str) -> Submitted:
    """Submit what a schedule submits, now and as a job of its own; its due times stay as they are."""
    found = schedules.get(database, name)
    now = schedules.read_clock(database)
    scheduled = ScheduledSubmit.from_json(found.submit)
    submitted = scheduled.run(database, settings, now, found.timezone, key=None)
    schedules.note_fired(database, name, submitted.job.id)
    return submitted


def schedule_as_dict(schedule: Schedule) -> dict[str, Any]:
    """What `schedule list --json` prints; times are ISO 8601 in UTC."""
    return {
        "name": schedule.name,
        "cron": schedule.cron,
        "timezone": schedule.timezone,
        "arguments": json.loads(schedule.arguments),
        "created_at": format_time(schedule.created_at),
        "due_at": format_time(schedule.due_at),
        "is_firing": schedule.is_firing,
        "last_fired_at": format_time(schedule.last_fired_at),
        "last_job_id": schedule.last_job_id,
        "last_error": schedule.last_error,
        "num_fired": schedule.num_fired,
    }
