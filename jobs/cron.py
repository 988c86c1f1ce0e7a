"""When a cron line is due: five fields, read in a time zone.

By cronsim: Celery's crontab tells how long ago a last run was due rather than when the next one is, and croniter was
given up by its author once. cronsim is what Healthchecks runs on, has no dependency, and does as Debian's cron does,
also where clocks change: a time that does not exist comes as soon as the gap is over, one that exists twice comes once.
Lines with a * in the minute or the hour go by the clock that runs on.
"""

import difflib
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from db.errors import SettingsError

_MAX_CHARS = 200
# as cronsim names them, in their order; and what each takes beside *, lists, ranges and steps
_FIELDS = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day-of-month": "1 to 31, as far as the month goes, or L for its last",
    "month": "1 to 12, or JAN to DEC",
    "day-of-week": "0 to 7 from Sunday to Sunday, or SUN to SAT",
}


def next_due_at(cron: str, timezone: str, after: float) -> float:
    """The first due time after `after`, both in seconds since 1970. SettingsError names the field that is wrong."""
    zone = _zone(timezone)
    times = _parse(cron, datetime.fromtimestamp(after, zone))
    # In an hour that comes twice cronsim counts from its first coming, which may be over.
    due_at = next((due_at for time in times if (due_at := time.timestamp()) > after), None)
    if due_at is None:
        raise SettingsError(f"the cron line {cron!r} is never due: no such day comes in the next 50 years")
    return due_at


def explain(cron: str) -> str:
    """A valid line in words, like `At 02:00 every day`."""
    return CronSim(cron, datetime.fromtimestamp(0, UTC)).explain()


def local_time(at: float, timezone: str) -> datetime:
    return datetime.fromtimestamp(at, _zone(timezone))


def _parse(cron: str, start: datetime) -> CronSim:
    if len(cron) > _MAX_CHARS:
        raise SettingsError(f"a cron line has at most {_MAX_CHARS} characters")
    words = cron.split()
    if len(words) != len(_FIELDS):
        raise SettingsError(
            f"a cron line has five fields, and {cron!r} has {len(words)};"
            ' give minute, hour, day of month, month and day of week, like "0 2 * * *"'
        )
    try:
        return CronSim(cron, start)
    except CronSimError as error:
        name = str(error).removeprefix("Bad ")
        word = words[list(_FIELDS).index(name)]
        raise SettingsError(
            f"the {name.replace('-', ' ')} of the cron line {cron!r} is wrong: {word};"
            f" give {_FIELDS[name]}; or * for all, 1,3 or 1-3 for some, */2 for every second"
        ) from None


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # the last for a folder of zones, like Europe
        near = difflib.get_close_matches(name, available_timezones(), n=1)
        hint = f"did you mean {near[0]}?" if near else "give one like Europe/Berlin, or UTC"
        raise SettingsError(f"this machine knows no time zone {name}; {hint}") from None
