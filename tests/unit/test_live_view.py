"""A job while it runs: a panel that fits, or plain lines; on stderr, and gone at the end."""

import io
import os
import re
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len

from db import activity
from db.activity import Activity, WorkerShare
from db.database import Database
from db.errors import DatabaseUnavailableError
from db.queries import Counts, Job
from db.states import JobState
from jobs.shown import live_view
from jobs.shown.live_panel import Glance, live_panel
from jobs.shown.live_view import LiveView
from jobs.shown.screen import plain

MakeJob = Callable[..., Job]
WORKERS = (
    WorkerShare("worker_4f2a9c1b7d3e", "gpu-1", 3, 192),
    WorkerShare("worker_77aa00bb11cc", "gpu-2", 1, 8),
)
BUSY = Activity(750.0, WORKERS, {"engine_error": 3, "input_too_long": 9})
QUIET = Activity(None, (), {})


@pytest.fixture
def busy(make_job: MakeJob) -> Glance:
    counts = Counts(pending=15_000, running=200, succeeded=24_788, failed=12)
    job = make_job(name="nightly-2026-11-25", counts=counts, requests_per_s=41.2, completion_tokens=900_000)
    return Glance(job, BUSY, is_ready=True)


def panel(glance: Glance, width: int, height: int = 24) -> list[str]:
    return [plain(line) for line in live_panel(glance, width, height)]


# the panel


def test_the_panel_says_all_there_is(busy: Glance) -> None:
    assert panel(busy, 80) == [
        "job_0123456789  in_progress  nightly-2026-11-25  hermes-2-pro-mistral-7b",
        "━" * 46 + "╍" + "─" * 28 + "  62%",
        "done        24,800 of 40,000, 12m 30s so far, 6m 09s left",
        "requests/s  41.2 now, 33.1 on average",
        "tokens/s    1,234 now, 1,200 on average",
        "failed      12: 9 input_too_long, 3 engine_error",
        "running     4 chunks, 200 requests, 2 workers",
        "  worker_4f2a9c1b7d3e  gpu-1   3 chunks  192 requests",
        "  worker_77aa00bb11cc  gpu-2    1 chunk  8 requests",
    ]


def test_a_narrow_panel_puts_under_each_other_what_does_not_fit(busy: Glance) -> None:
    assert panel(busy, 40) == [
        "job_0123456789  in_progress  nightly-20…",
        "━" * 21 + "╍" + "─" * 13 + "  62%",
        "done        24,800 of 40,000",
        "            12m 30s so far, 6m 09s left",
        "requests/s  41.2 now, 33.1 on average",
        "tokens/s    1,234 now, 1,200 on average",
        "failed      12: 9 input_too_long",
        "            3 engine_error",
        "running     4 chunks, 200 requests",
        "            2 workers",
        "  worker_4f2a9…   3 chunks  192 requests",
        "  worker_77aa00b…    1 chunk  8 requests",
    ]


@pytest.mark.parametrize("width", [10, 20, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 8, 24])
def test_the_panel_fits_whatever_the_size(busy: Glance, width: int, height: int) -> None:
    many = tuple(WorkerShare(f"worker_{number:012}", "日本" * 30, 12, 999_999) for number in range(100))
    wild = replace(busy.job, name="日本\x1b[2J" * 50, card_name="c" * 100)
    glance = Glance(wild, replace(BUSY, running=many), is_ready=False)
    lines = panel(glance, width, height)
    assert 1 <= len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)
    assert "\x1b" not in "".join(lines)


def test_workers_for_which_there_is_no_room_are_counted(busy: Glance) -> None:
    many = tuple(WorkerShare(f"worker_{number:012}", "gpu", 1, 9) for number in range(30))
    lines = panel(Glance(busy.job, replace(BUSY, running=many), is_ready=True), 80, 12)
    assert len(lines) == 12
    assert lines[-1] == "  … and 26 more workers"
    assert sum(line.startswith("  worker_") for line in lines) == 4


def test_before_anything_ran_the_panel_says_what_is_waited_for(make_job: MakeJob) -> None:
    job = make_job(
        state=JobState.QUEUED,
        counts=Counts(pending=3),
        started_at=None,
        completion_tokens=0,
        requests_per_s=None,
        completion_tokens_per_s=None,
    )
    assert panel(Glance(job, QUIET, is_ready=False), 80) == [
        "job_0123456789  loading the engine  hermes-2-pro-mistral-7b",
        "─" * 75 + "   0%",
        "done        0 of 3",
    ]


def test_failures_that_were_not_counted_to_the_end_say_so(busy: Glance) -> None:
    job = replace(busy.job, counts=replace(busy.job.counts, failed=2_000_000))
    failures = {"engine_error": 10_001, "input_too_long": 10_000}
    lines = panel(Glance(job, replace(BUSY, failures=failures), is_ready=True), 80)
    assert "failed      2,000,000: 10,000+ engine_error, 10,000 input_too_long" in lines
    lines = panel(Glance(job, replace(BUSY, failures={"engine_error": 10_001}), is_ready=True), 80)
    assert "failed      2,000,000 engine_error" in lines, "there is only one to share them"


def test_results_that_were_taken_again_are_counted(busy: Glance) -> None:
    assert not any(line.startswith("reused") for line in panel(busy, 80))
    reusing = replace(busy, job=replace(busy.job, num_reused=1_204))
    assert "reused      1,204" in panel(reusing, 80)


def test_failures_are_told_by_their_place_and_not_by_colour_alone(busy: Glance) -> None:
    lines = live_panel(busy, 80, 24)
    assert [plain(line) for line in lines if any(style == "red" for _, style in line)] == [
        panel(busy, 80)[1],
        "failed      12: 9 input_too_long, 3 engine_error",
    ]
    assert {style for line in lines for _, style in line} <= {"", "bold", "dim", "green", "red", "cyan"}


# where there is no terminal


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(live_view, "time", made)
    return made


def test_without_a_terminal_there_is_a_line_now_and_then_on_stderr(
    make_job: MakeJob,
    over: Job,
    clock: Clock,
    sqlite_database: Database,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # colours, perhaps; but nothing there can be drawn over
    with LiveView(sqlite_database) as view:
        view.update(make_job(), is_ready=False)
        view.update(make_job())
        view.update(make_job(counts=Counts(pending=1, succeeded=99)))  # too soon to say it again
        clock.now += 11
        view.update(make_job(counts=Counts(pending=1, succeeded=99)))
        view.update(None)
        view.update(over, is_ready=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "loading the engine  20 of 100 requests  1,234 tokens/s, 20s left",
        "in_progress  20 of 100 requests  1,234 tokens/s, 20s left",
        "in_progress  99 of 100 requests  1,234 tokens/s, 0s left",
        "waiting for the database",
        "completed  100 of 100 requests  1,234 tokens/s",
    ]


# in a terminal


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Drawn:
    """What stands on a terminal that only knows what the panel writes: new lines, up and erase, and colours."""

    def __init__(self) -> None:
        self.terminal = _Terminal()
        self.columns = 80

    def lines(self) -> list[str]:
        found: list[str] = []
        text = re.sub(r"\x1b\[[\d;]*m", "", self.terminal.getvalue())
        for part in re.split(r"(\x1b\[\d+F\x1b\[J)", text):
            if up := re.fullmatch(r"\x1b\[(\d+)F\x1b\[J", part):
                del found[-int(up[1]) :]
            else:
                assert "\x1b" not in part
                found += part.splitlines()
        return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(activity, "read_activity", lambda *_: BUSY)
    made = Drawn()
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((made.columns, 24)))
    return made


def test_the_panel_is_drawn_over_and_taken_away(
    busy: Glance, drawn: Drawn, clock: Clock, sqlite_database: Database
) -> None:
    drawn.terminal.write("job_0123456789: 40,000 requests\n")
    with redirect_stderr(drawn.terminal), LiveView(sqlite_database) as view:
        for counts in (Counts(pending=40_000), busy.job.counts):
            view.update(replace(busy.job, counts=counts))
            clock.now += 2
        assert drawn.lines() == ["job_0123456789: 40,000 requests", *panel(busy, 80)]
        view.update(None)
        assert drawn.lines()[1:] == ["waiting for the database"]
        view.update(busy.job)
    assert drawn.lines() == ["job_0123456789: 40,000 requests"]


def test_the_database_is_asked_once_a_second(
    busy: Glance, drawn: Drawn, clock: Clock, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def read_activity(*_: object) -> Activity:
        asked.append(clock.now)
        return BUSY

    monkeypatch.setattr(activity, "read_activity", read_activity)
    with redirect_stderr(drawn.terminal), LiveView(sqlite_database) as view:
        for _ in range(9):
            view.update(busy.job)
            clock.now += 0.25
    assert asked == [100.0, 101.0, 102.0]


def test_a_database_that_goes_away_in_between_leaves_the_panel(
    busy: Glance, drawn: Drawn, clock: Clock, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_away(*_: object) -> Any:
        raise DatabaseUnavailableError("away")

    with redirect_stderr(drawn.terminal), LiveView(sqlite_database) as view:
        view.update(busy.job)
        monkeypatch.setattr(activity, "read_activity", be_away)
        clock.now += 2
        view.update(busy.job)
        assert drawn.lines() == panel(busy, 80)


def test_a_terminal_that_was_made_narrower_has_wrapped_what_is_taken_away(
    busy: Glance, drawn: Drawn, sqlite_database: Database
) -> None:
    with redirect_stderr(drawn.terminal), LiveView(sqlite_database) as view:
        view.update(busy.job)
        num_rows = sum(-(-cell_len(line) // 40) for line in panel(busy, 80))
        drawn.columns = 40
        view.update(busy.job)
    assert num_rows > len(panel(busy, 80))
    first, *_ = re.findall(r"\x1b\[(\d+)F\x1b\[J", drawn.terminal.getvalue())
    assert int(first) == num_rows
    assert "nightly-20…" in drawn.terminal.getvalue(), "drawn for the new width at once"


def test_a_dumb_terminal_gets_lines(
    busy: Glance, drawn: Drawn, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with redirect_stderr(drawn.terminal), LiveView(sqlite_database) as view:
        view.update(busy.job)
    assert drawn.lines() == ["in_progress  24,800 of 40,000 requests  1,234 tokens/s, 6m 09s left"]
