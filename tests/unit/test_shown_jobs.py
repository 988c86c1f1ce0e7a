"""What people see of jobs: nothing cut off where no terminal is, nothing that a name can do to the screen."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.cells import cell_len

from db.queries import Counts, Job
from db.states import JobState
from jobs.shown.bar import bar, percent
from jobs.shown.job_table import job_table, print_jobs
from jobs.shown.one_job import as_pairs, describe, summarize
from jobs.shown.screen import plain

MakeJob = Callable[..., Job]
NIGHTLY = {"id": "job_a", "name": "nightly-2026-11-25"}


# on a few lines


def test_a_job_is_described_line_by_line(make_job: MakeJob) -> None:
    assert describe(make_job(name="nightly")).splitlines() == [
        "job       job_0123456789  nightly",
        "model     hermes-2-pro-mistral-7b",
        "state     in_progress",
        "requests  100: 18 succeeded, 2 failed, 30 running, 50 pending",
        "tokens    12,345 prompt, 67,890 completion",
        "rate      1,234 tokens/s, 20s left",
        "created   2023-11-14T22:13:20.250Z",
        "started   2023-11-14T22:13:30.000Z",
    ]


def test_what_is_not_known_yet_is_left_out(make_job: MakeJob) -> None:
    job = make_job(
        state=JobState.QUEUED,
        started_at=None,
        requests_per_s=None,
        completion_tokens_per_s=None,
        counts=Counts(),
    )
    text = describe(job)
    assert "rate" not in text
    assert "started" not in text
    assert "None" not in text
    assert "requests  0: no requests" in text


def test_a_name_does_nothing_to_what_is_described(make_job: MakeJob) -> None:
    assert (
        describe(make_job(name="a\x1b[2J\nb")).splitlines()[0]
        == "job       job_0123456789  a\ufffd[2J\ufffdb"
    )


def test_a_job_that_is_over_is_summarized(over: Job) -> None:
    assert summarize(over, "out/results.jsonl").splitlines() == [
        "job_0123456789 completed in 1m 30s: 98 succeeded, 2 failed",
        "12,345 prompt and 67,890 completion tokens, 1,234 tokens/s",
        "why they failed: promptmill errors job_0123456789",
        "results: out/results.jsonl",
    ]


@pytest.mark.parametrize("output", [None, "-"])
def test_results_on_stdout_have_no_place_to_name(over: Job, output: str | None) -> None:
    assert "results" not in summarize(over, output)


def test_a_job_that_never_ran_is_summarized_too(make_job: MakeJob) -> None:
    job = make_job(
        state=JobState.CANCELLED,
        counts=Counts(cancelled=3),
        started_at=None,
        finished_at=1_700_000_100.0,
        prompt_tokens=0,
        completion_tokens=0,
        completion_tokens_per_s=None,
    )
    assert summarize(job).splitlines() == [
        "job_0123456789 cancelled: 3 cancelled",
        "0 prompt and 0 completion tokens",
    ]


# the bar


@pytest.mark.parametrize(
    ("counts", "drawn"),
    [
        (Counts(pending=10), "──────────"),
        (Counts(pending=5, succeeded=5), "━━━━━─────"),
        (Counts(pending=4, running=2, succeeded=4), "━━━━╍╍────"),
        (Counts(pending=999, running=1), "╍─────────"),
        (Counts(pending=999, failed=1), "━─────────"),
        (Counts(pending=1, succeeded=999), "━━━━━━━━━─"),
        (Counts(running=1, succeeded=999), "━━━━━━━━━╍"),
        (Counts(succeeded=1000), "━━━━━━━━━━"),
        (Counts(succeeded=4, cancelled=6), "━━━━──────"),
        (Counts(), "──────────"),
    ],
)
def test_a_bar_without_colours_tells_what_is_done_from_what_runs_and_what_is_left(
    counts: Counts, drawn: str
) -> None:
    assert plain(bar(counts, 10)) == drawn


def test_a_single_failure_of_many_is_seen() -> None:
    assert bar(Counts(succeeded=1_000_000, failed=1), 10) == [("━" * 9, "green"), ("━", "red")]


@pytest.mark.parametrize("width", [0, 1, 2, 7])
def test_a_bar_has_its_width_whatever_is_in_it(width: int) -> None:
    for counts in (
        Counts(),
        Counts(failed=1),
        Counts(1, 1, 1, 1, 1, 1),
        Counts(running=9),
        Counts(failed=1, pending=9),
    ):
        assert sum(len(text) for text, _ in bar(counts, width)) == width


def test_a_hundred_percent_is_all_of_it() -> None:
    assert percent(Counts(succeeded=999_999, running=1)) == "  99%"
    assert percent(Counts(succeeded=1, failed=1)) == " 100%"
    assert percent(Counts(succeeded=1, cancelled=3)) == "  25%", "what never ran is not done"
    assert percent(Counts(pending=3)) == "   0%"


# the list, where no terminal is


def rows(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "\x1b" not in captured.out
    return captured.out.splitlines()


def test_the_list_has_a_line_for_each_job_in_the_order_given(
    make_job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    print_jobs([make_job(id="job_b"), make_job(id="job_a", name="nightly")])
    title, *lines = rows(capsys)
    assert title.split() == ["JOB", "NAME", "MODEL", "STATE", "DONE", "FAILED", "TOTAL", "CREATED", "LABELS"]
    assert [line.split()[0] for line in lines] == ["job_b", "job_a"]
    assert lines[1].split() == [
        *("job_a", "nightly", "hermes-2-pro-mistral-7b", "in_progress"),
        *("18", "2", "100", "2023-11-14", "22:13"),
    ]


@pytest.mark.parametrize("columns", ["80", "20"])
def test_nothing_is_cut_off_where_no_terminal_is(
    make_job: MakeJob, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    counts = Counts(pending=10_000_000, succeeded=1_234_567, failed=7_654_321)
    print_jobs([make_job(name="n" * 200, counts=counts)] * 2)
    lines = rows(capsys)
    assert len(lines) == 3, "one line a job"
    for part in (
        "job_0123456789",
        "n" * 200,
        "hermes-2-pro-mistral-7b",
        "in_progress",
        "1,234,567",
        "7,654,321",
    ):
        assert part in lines[1]
    assert lines[1].endswith("18,888,888  2023-11-14 22:13")


@pytest.mark.parametrize(
    "name", ["[bold]x[/bold]", "[/nothing]", ":fire: x", "https://a.example/b 123", "日本"]
)
def test_a_name_is_shown_as_it_is(make_job: MakeJob, capsys: pytest.CaptureFixture[str], name: str) -> None:
    print_jobs([make_job(name=name)])
    assert name in rows(capsys)[1]


def test_a_name_does_nothing_to_a_terminal(make_job: MakeJob, capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs([make_job(name="a\n\x1b[2Jb")])
    lines = rows(capsys)
    assert len(lines) == 2
    assert "a\ufffd\ufffd[2Jb" in lines[1]


def test_labels_are_the_last_column(make_job: MakeJob, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [make_job(labels={"team": "eval", "night": "3"}), make_job()]
    print_jobs(jobs)
    _, labelled, other = rows(capsys)
    assert labelled.endswith("2023-11-14 22:13  night=3,team=eval")
    assert other.endswith("2023-11-14 22:13")
    assert [line.split()[-1] for line in table(jobs, 200)] == ["LABELS", "night=3,team=eval", "22:13"]


def test_an_empty_list_is_its_titles(capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs([])
    assert len(rows(capsys)) == 1


# in a terminal


def table(jobs: list[Job], width: int) -> list[str]:
    return [plain(line) for line in job_table(jobs, width)]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_terminal_s_table_fits_and_shows_every_job_s_id_and_state_whole(
    make_job: MakeJob, width: int
) -> None:
    big = Counts(pending=9_000_000, running=640, succeeded=999_360)
    jobs = [make_job(name="日本" * 100), make_job(name="n" * 200, counts=big), make_job()]
    title, *lines = table(jobs, width)
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("job_0123456789  ")
        assert "in_progress" in line
        assert "%" in line
    assert all(cell_len(line) <= width for line in [title, *lines])
    assert title.split()[0] == "JOB"


def test_a_narrow_terminal_goes_without_what_matters_least(make_job: MakeJob) -> None:
    jobs = [make_job(**NIGHTLY)]
    titles = {width: table(jobs, width)[0].split() for width in (30, 40, 60, 80, 100, 120, 140)}
    assert titles == {
        30: ["JOB", "STATE", "PROGRESS"],
        40: ["JOB", "STATE", "PROGRESS", "FAILED"],
        60: ["JOB", "NAME", "STATE", "PROGRESS", "FAILED"],
        80: ["JOB", "NAME", "STATE", "PROGRESS", "LEFT", "FAILED", "TOTAL"],
        100: ["JOB", "NAME", "STATE", "PROGRESS", "LEFT", "FAILED", "TOTAL", "CREATED"],
        120: ["JOB", "NAME", "MODEL", "STATE", "PROGRESS", "LEFT", "FAILED", "TOTAL", "CREATED"],
        140: ["JOB", "NAME", "MODEL", "STATE", "PROGRESS", "LEFT", "FAILED", "TOTAL", "CREATED"],
    }


def test_a_column_that_says_nothing_takes_no_room(make_job: MakeJob, over: Job) -> None:
    assert table([over], 200)[0].split() == [
        *("JOB", "MODEL", "STATE", "PROGRESS", "FAILED", "TOTAL", "CREATED")
    ]
    assert "LEFT" in table([over, make_job()], 200)[0]


def test_a_wide_terminal_cuts_nothing_and_draws_longer_bars(make_job: MakeJob) -> None:
    line = table([make_job(**NIGHTLY)], 200)[1]
    assert line == (
        "job_a  nightly-2026-11-25  hermes-2-pro-mistral-7b  in_progress  "
        "━━━━━━╍╍╍╍╍╍╍╍╍───────────────  20%   20s       2    100  2023-11-14 22:13"
    )


def test_no_colour_is_one_that_vanishes_on_some_background(make_job: MakeJob, over: Job) -> None:
    lines = job_table([make_job(**NIGHTLY), over, make_job(state=JobState.CANCELLED)], 120)
    assert {style for line in lines for _, style in line} <= {"", "bold", "dim", "green", "red", "cyan"}


def test_colours_are_for_a_terminal_that_has_them(
    over: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    print_jobs([over])
    assert "\x1b[32mcompleted\x1b[0m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    print_jobs([over])
    text = capsys.readouterr().out
    assert "completed" in text
    assert "\x1b[3" not in text, "no colour"


def test_what_was_reused_is_told_apart_from_what_was_generated(over: Job) -> None:
    job = replace(over, num_reused=1_234)
    assert "reused    1,234 took the result of another request" in describe(job).splitlines()
    assert summarize(job).splitlines()[1:3] == [
        "1,234 took the result of another request; the others:",
        "12,345 prompt and 67,890 completion tokens, 1,234 tokens/s",
    ]
    assert " reused=1234 prompt_tokens=12345 " in as_pairs(job)
