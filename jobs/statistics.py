"""What was done in the last days, by day and by card: what `promptmill stats` shows."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from db.database import Database
from db.transitions import Tally
from db.usage import Group, list_usage
from jobs.shown.table import print_table

_TITLES = ("REQUESTS", "FAILED", "PROMPT TOKENS", "COMPLETION TOKENS")
_BARS, _ASCII_BARS = "▁▂▃▅▇", "_.-=#"
_MAX_BARS = 60


@dataclass(frozen=True)
class Statistics:
    """`by_name` has a tally for each of `days`, the oldest first. A day is one of this machine's time zone."""

    days: tuple[date, ...]
    group: Group
    by_name: dict[str, tuple[Tally, ...]]

    def of_day(self, number: int) -> Tally:
        """All cards together."""
        return _sum(tallies[number] for tallies in self.by_name.values())


def statistics(database: Database, num_days: int, group: Group = Group.CARD) -> Statistics:
    """Today and the days before it, of what is still stored. A request counts on the day when its chunk finished."""
    today = datetime.now(UTC).astimezone().date()
    days = tuple(today - timedelta(days=back) for back in reversed(range(num_days)))
    # from midnight to midnight, which is not always 24 hours
    bounds = [_midnight(day) for day in (*days, today + timedelta(days=1))]
    by_name: dict[str, list[Tally]] = {}
    for usage in list_usage(database, bounds, group):
        tallies = by_name.setdefault(usage.name, [Tally()] * num_days)
        tallies[bounds.index(usage.began_at)] = usage.tally
    return Statistics(days, group, {name: tuple(by_name[name]) for name in sorted(by_name)})


def _midnight(day: date) -> float:
    return datetime.combine(day, time()).astimezone().timestamp()


def _sum(tallies: Iterator[Tally] | Sequence[Tally]) -> Tally:
    return sum(tallies, Tally())


def statistics_as_dict(found: Statistics, *, by_day: bool) -> dict[str, Any]:
    """What `stats --json` prints."""
    if by_day:
        rows = [
            {"day": day.isoformat(), **_as_dict(found.of_day(number))}
            for number, day in enumerate(found.days)
        ]
        return {"by": "day", "rows": rows}
    return {
        "by": found.group,
        "rows": [
            {
                found.group: name,
                **_as_dict(_sum(tallies)),
                "by_day": [
                    {"day": day.isoformat(), **_as_dict(tally)}
                    for day, tally in zip(found.days, tallies, strict=True)
                ],
            }
            for name, tallies in found.by_name.items()
        ],
    }


def _as_dict(tally: Tally) -> dict[str, int]:
    return {
        "requests": tally.num_results,
        "failed": tally.num_failed,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
    }


def print_statistics(found: Statistics, *, by_day: bool) -> None:
    """A row for each day or for each name, and of each name a line of bars: its completion tokens day by day."""
    name_title = found.group.value.upper()
    bars = {name: sparkline(_tokens(tallies)) for name, tallies in found.by_name.items()}
    if not by_day:
        rows = [(name, *_cells(_sum(tallies)), bars[name]) for name, tallies in found.by_name.items()]
        print_table((name_title, *_TITLES, "BY DAY"), rows, numbers=_TITLES, flexible=(name_title,))
        return
    rows = [(day.isoformat(), *_cells(found.of_day(number))) for number, day in enumerate(found.days)]
    total = _sum([found.of_day(number) for number in range(len(found.days))])
    print_table(("DAY", *_TITLES), [*rows, ("total", *_cells(total))], numbers=_TITLES)
    if bars:
        sys.stdout.write("\n")
        print_table((name_title, "COMPLETION TOKENS BY DAY"), list(bars.items()), flexible=(name_title,))


def _tokens(tallies: Sequence[Tally]) -> list[int]:
    return [tally.completion_tokens for tally in tallies]


def _cells(tally: Tally) -> tuple[str, ...]:
    return tuple(f"{value:,}" for value in _as_dict(tally).values())


def sparkline(values: Sequence[int]) -> str:
    """A bar for each value, or for some together where there are many; the lowest bar is nothing at all."""
    bars = _BARS if _can_encode(_BARS) else _ASCII_BARS
    at_once = math.ceil(len(values) / _MAX_BARS)
    sums = [sum(values[first : first + at_once]) for first in range(0, len(values), at_once)]
    highest = max(sums, default=0)
    return "".join(bars[math.ceil(value / highest * (len(bars) - 1)) if value else 0] for value in sums)


def _can_encode(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
