"""When a cron line is due, in zones whose clocks change, and what is said of a line that is wrong."""

from datetime import UTC, datetime

import pytest

from db.errors import SettingsError
from jobs.cron import explain, next_due_at

BERLIN = "Europe/Berlin"


def next_times(cron: str, timezone: str, after: str, number: int = 1) -> list[str]:
    """As UTC, from a time that is UTC too."""
    at = datetime.fromisoformat(after).replace(tzinfo=UTC).timestamp()
    found = []
    for _ in range(number):
        at = next_due_at(cron, timezone, at)
        found.append(datetime.fromtimestamp(at, UTC).strftime("%m-%d %H:%M"))
    return found


@pytest.mark.parametrize(
    ("cron", "after", "due"),
    [
        ("0 2 * * *", "2026-11-25 01:59:59.9", "11-25 02:00"),
        ("0 2 * * *", "2026-11-25 02:00:00", "11-26 02:00"),
        ("*/15 * * * *", "2026-11-25 23:50", "11-26 00:00"),
        ("30 8 1,15 * *", "2026-11-25 00:00", "12-01 08:30"),
        ("0 0 * * MON-FRI", "2026-11-27 12:00", "11-30 00:00"),
        ("0 0 L 2 *", "2026-11-25 00:00", "02-28 00:00"),
        # either day, where neither field is a star: as cron has it
        ("0 0 13 * 5", "2026-11-25 00:00", "11-27 00:00"),
        ("0 0 29 2 *", "2026-11-25 00:00", "02-29 00:00"),
    ],
)
def test_the_next_due_time_is_after_now(cron: str, after: str, due: str) -> None:
    assert next_times(cron, "UTC", after) == [due]


def test_a_zone_s_own_clock_counts() -> None:
    assert next_times("0 2 * * *", BERLIN, "2026-07-01 12:00") == ["07-02 00:00"]
    assert next_times("0 2 * * *", BERLIN, "2026-11-25 12:00") == ["11-26 01:00"]
    assert next_times("30 2 * * *", "Asia/Kathmandu", "2026-11-25 12:00") == ["11-25 20:45"]


def test_a_time_that_does_not_exist_comes_once_and_as_soon_as_the_gap_is_over() -> None:
    """On 28 March 2027 Berlin's clocks go from 2:00 to 3:00, which is 1:00 UTC."""
    assert next_times("30 2 * * *", BERLIN, "2027-03-27 00:00", 3) == [
        "03-27 01:30",
        "03-28 01:00",
        "03-29 00:30",
    ]
    assert next_times("10,50 2 * * *", BERLIN, "2027-03-28 00:00", 2) == ["03-28 01:00", "03-29 00:10"]


def test_a_time_that_comes_twice_comes_once() -> None:
    """On 31 October 2027 Berlin's clocks go from 3:00 back to 2:00, which is 1:00 UTC."""
    assert next_times("30 2 * * *", BERLIN, "2027-10-30 12:00", 2) == ["10-31 00:30", "11-01 01:30"]


def test_in_an_hour_that_comes_a_second_time_nothing_is_due_in_the_past() -> None:
    """A worker that is back at 2:10, the second time, must not find 2:30 of the first time due again."""
    assert next_times("30 2 * * *", BERLIN, "2027-10-31 01:10") == ["11-01 01:30"]
    assert next_times("30 2,4 * * *", BERLIN, "2027-10-31 01:10") == ["10-31 03:30"]


@pytest.mark.parametrize(("after", "number"), [("2027-03-28 00:00", 8), ("2027-10-31 00:00", 8)])
def test_what_comes_every_half_hour_goes_by_the_clock_that_runs_on(after: str, number: int) -> None:
    found = next_times("*/30 * * * *", BERLIN, after, number)
    assert [time[-5:] for time in found] == [f"{n // 2:02}:{n % 2 * 30:02}" for n in range(1, number + 1)]


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("60 2 * * *", r"the minute of the cron line .* is wrong: 60; give 0 to 59"),
        ("0 24 * * *", r"the hour .* is wrong: 24; give 0 to 23"),
        ("0 2 0 * *", r"the day of month .* is wrong: 0; give 1 to 31"),
        ("0 2 30 2 *", r"the day of month .* as far as the month goes"),
        ("0 2 * 13 *", r"the month .* is wrong: 13; give 1 to 12, or JAN to DEC"),
        ("0 2 * * 8", r"the day of week .* is wrong: 8; give 0 to 7"),
        ("0 2 * * FRU", r"the day of week .* is wrong: FRU"),
        ("5-1 2 * * *", r"the minute .* is wrong: 5-1"),
        ("*/0 2 * * *", r"the minute .* is wrong: \*/0"),
        ("0 2 * *", "has five fields, and '0 2 . .' has 4"),
        ("0 0 2 * * *", "has five fields, and '0 0 2 . . .' has 6"),
        ("@daily", "has five fields, and '@daily' has 1"),
        ("", "has five fields, and '' has 0"),
        ("9" * 5_000 + " 2 * * *", "at most 200 characters"),
        ("* * */20 * 1L", "never due"),
    ],
)
def test_a_wrong_line_is_refused_by_its_field(cron: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        next_due_at(cron, "UTC", 0.0)


@pytest.mark.parametrize(
    ("zone", "said"),
    [
        ("Europe/Berln", "no time zone Europe/Berln; did you mean Europe/Berlin?"),
        ("Europe", "no time zone Europe;"),
        ("", "Europe/Berlin, or UTC"),
        ("/etc/passwd", "Europe/Berlin, or UTC"),
        ("../../etc/passwd", "Europe/Berlin, or UTC"),
        ("a\0b", "Europe/Berlin, or UTC"),
        ("x" * 5_000, "no time zone"),
    ],
)
def test_an_unknown_zone_is_refused(zone: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said.replace("?", r"\?")):
        next_due_at("0 2 * * *", zone, 0.0)


def test_a_line_is_said_in_words() -> None:
    assert explain("0 2 * * *") == "At 02:00 every day"
