"""What was done by day and card: local days, sums, bars; and how workers and tables look."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from rich.cells import cell_len
from sqlalchemy import update

from db.database import Database
from db.queries import Worker
from db.states import WorkerState
from db.tables import chunks
from db.transitions import Tally
from db.usage import Group
from jobs import statistics as module
from jobs.fleet import print_workers, worker_as_dict
from jobs.shown.table import print_table, span
from jobs.statistics import Statistics, print_statistics, sparkline, statistics, statistics_as_dict

DAYS = (date(2026, 11, 24), date(2026, 11, 25))
FOUND = Statistics(
    DAYS,
    Group.CARD,
    {"big": (Tally(), Tally(9, 1, 1_000, 8_000)), "small": (Tally(2, 0, 20, 30), Tally(3, 0, 30, 15))},
)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def finished_at(database: Database, job_id: str, when: datetime) -> None:
    with database.write() as tx:
        tx.execute(update(chunks).where(chunks.c.job_id == job_id).values(finished_at=when.timestamp()))


# days


@pytest.mark.usefixtures("berlin")
def test_a_chunk_counts_on_the_local_day_on_which_it_finished(
    sqlite_database: Database, store: Callable[..., str], finish: Callable[..., None]
) -> None:
    today = datetime.now(UTC).astimezone().date()
    midnight = datetime.fromtimestamp(module._midnight(today), UTC)
    for before_s in (-1, 1, 86_400 + 3_600 * 2):
        job_id = store({"prompt": "x"}, {"prompt": "y"})
        finish(sqlite_database, job_id)
        finished_at(sqlite_database, job_id, midnight - timedelta(seconds=before_s))
    found = statistics(sqlite_database, 2)
    assert found.days == (today - timedelta(days=1), today)
    assert found.by_name == {"hermes-2-pro-mistral-7b": (Tally(2, 0, 6, 4), Tally(2, 0, 6, 4))}


@pytest.mark.usefixtures("berlin")
def test_a_day_on_which_the_clocks_change_has_its_own_length() -> None:
    lengths = [
        module._midnight(day + timedelta(days=1)) - module._midnight(day)
        for day in (date(2027, 3, 28), date(2027, 10, 31), date(2027, 6, 1))
    ]
    assert [length / 3_600 for length in lengths] == [23, 25, 24]


def test_what_did_not_finish_does_not_count(
    sqlite_database: Database, store: Callable[..., str], finish: Callable[..., None]
) -> None:
    done = store({"prompt": "x"}, {"prompt": "y"}, {"prompt": 5}, chunk_size=1)
    finish(sqlite_database, done, max_chunks=1)
    assert [one for tallies in statistics(sqlite_database, 1).by_name.values() for one in tallies] == [
        Tally(1, 0, 3, 2)
    ]


def test_nothing_at_all(sqlite_database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    found = statistics(sqlite_database, 3)
    assert found.by_name == {}
    print_statistics(found, by_day=True)
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 + 1
    print_statistics(found, by_day=False)
    assert len(capsys.readouterr().out.splitlines()) == 1


# shown


def test_by_day_all_cards_are_summed_and_each_has_its_bars(capsys: pytest.CaptureFixture[str]) -> None:
    print_statistics(FOUND, by_day=True)
    assert capsys.readouterr().out.splitlines() == [
        "DAY         REQUESTS  FAILED  PROMPT TOKENS  COMPLETION TOKENS",
        "2026-11-24         2       0             20                 30",
        "2026-11-25        13       1          1,030              8,015",
        "total             15       1          1,050              8,045",
        "",
        "CARD   COMPLETION TOKENS BY DAY",
        "big    ▁▇",
        "small  ▇▃",
    ]


def test_by_card_each_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_statistics(FOUND, by_day=False)
    assert capsys.readouterr().out.splitlines() == [
        "CARD   REQUESTS  FAILED  PROMPT TOKENS  COMPLETION TOKENS  BY DAY",
        "big          10       1          1,000              8,000  ▁▇",
        "small         5       0             50                 45  ▇▃",
    ]


def test_as_json_the_rows_are_the_same() -> None:
    by_day: dict[str, Any] = json.loads(json.dumps(statistics_as_dict(FOUND, by_day=True)))
    assert by_day["by"] == "day"
    assert by_day["rows"][1] == {
        "day": "2026-11-25",
        "requests": 13,
        "failed": 1,
        "prompt_tokens": 1_030,
        "completion_tokens": 8_015,
    }
    by_card: dict[str, Any] = json.loads(json.dumps(statistics_as_dict(FOUND, by_day=False)))
    assert by_card["by"] == "card"
    assert [(row["card"], row["requests"]) for row in by_card["rows"]] == [("big", 10), ("small", 5)]
    assert [(day["day"], day["completion_tokens"]) for day in by_card["rows"][1]["by_day"]] == [
        ("2026-11-24", 30),
        ("2026-11-25", 15),
    ]


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([0, 1, 25, 50, 75, 100], "▁▂▂▃▅▇"),
        ([0, 0], "▁▁"),
        ([5], "▇"),
        ([1, 10**18], "▂▇"),
    ],
)
def test_the_highest_bar_is_the_most_and_only_nothing_is_the_lowest(values: list[int], bars: str) -> None:
    assert sparkline(values) == bars


def test_many_days_share_bars() -> None:
    line = sparkline([1] * 365 + [0])
    assert len(line) <= 60
    assert set(line[:-1]) == {"▇"}


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1"])
def test_where_there_are_no_bars_there_are_letters(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    class Out:
        pass

    Out.encoding = encoding  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stdout", Out())
    assert sparkline([0, 50, 100]) == "_-#"


# workers


@pytest.fixture
def worker() -> Worker:
    return Worker(
        "worker_1", WorkerState.READY, "small", "echo", "host", 7, 1.0, 2.4, 3, 1_234, 56_789, 98.7654
    )


def test_a_worker_s_row(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    gone = Worker(**{**vars(worker), "state": WorkerState.GONE, "heartbeat_age_s": 7_300.0})
    print_workers([worker, gone])
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "WORKER STATE CARD ENGINE WHERE CHUNKS DONE TOKENS/S HEARTBEAT",
        "worker_1 ready small echo host:7 3 1,234 99 2 s ago",
        "worker_1 gone small echo host:7 3 1,234 2 h ago",
    ]
    assert worker_as_dict(worker)["completion_tokens_per_s"] == 98.765
    assert worker_as_dict(gone)["completion_tokens_per_s"] is None, "it does nothing any more"


# tables


def test_a_cell_can_do_nothing_to_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "B"), [("[bold]x[/] :smile:", "\x1b[2Jy\nz")])
    assert capsys.readouterr().out.splitlines()[1:] == ["[bold]x[/] :smile:  \ufffd[2Jy\ufffdz"]


def test_a_narrow_terminal_cuts_what_may_be_cut_and_nothing_else_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("漢字" * 10, "x" * 30, "1")]
    print_table(("NAME", "ID", "N"), rows, flexible=("NAME",))
    assert "漢字" * 10 in capsys.readouterr().out
    for name, value in (("TTY_COMPATIBLE", "1"), ("COLUMNS", "50"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    print_table(("NAME", "ID", "N"), rows, flexible=("NAME",))
    line = capsys.readouterr().out.splitlines()[1]
    assert cell_len(line) <= 50
    assert line.endswith("  " + "x" * 30 + "  1")
    assert "…" in line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0 s"),
        (2.9, "2 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3_599, "59 min"),
        (3_600, "1 h"),
        (172_799, "47 h"),
        (172_800, "2 days"),
    ],
)
def test_a_span_of_time_in_words(seconds: float, words: str) -> None:
    assert span(seconds) == words
