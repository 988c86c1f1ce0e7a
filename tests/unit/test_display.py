"""What people see of a job: nothing cut off where no terminal is, nothing that a name can do to the screen."""

from collections.abc import Callable

import pytest
from rich.cells import cell_len

from db.queries import Counts, Job
from db.states import JobState
from jobs import display
from jobs.display import LiveView, describe, format_duration, print_jobs, summarize


@pytest.fixture
def make_job() -> Callable[..., Job]:
    def make(**values: object) -> Job:
        defaults: dict[str, object] = {
            "id": "job_0123456789",
            "name": None,
            "state": JobState.IN_PROGRESS,
            "priority": 0,
            "card_name": "hermes-2-pro-mistral-7b",
            "card_sha256": "c" * 64,
            "input_name": "in.jsonl",
            "input_sha256": "i" * 64,
            "created_at": 1_700_000_000.25,
            "started_at": 1_700_000_010.0,
            "finished_at": None,
            "counts": Counts(pending=50, running=30, succeeded=18, failed=2),
            "prompt_tokens": 12_345,
            "completion_tokens": 67_890,
            "requests_per_s": 4.0,
            "completion_tokens_per_s": 1_234.5,
        }
        return Job(**{**defaults, **values})  # type: ignore[arg-type]

    return make


@pytest.fixture
def over(make_job: Callable[..., Job]) -> Job:
    return make_job(
        state=JobState.COMPLETED,
        counts=Counts(succeeded=98, failed=2),
        finished_at=1_700_000_100.0,
    )


# on a few lines


def test_a_job_is_described_line_by_line(make_job: Callable[..., Job]) -> None:
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


def test_what_is_not_known_yet_is_left_out(make_job: Callable[..., Job]) -> None:
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


def test_a_job_that_is_over_is_summarized(over: Job) -> None:
    assert summarize(over, "out/results.jsonl").splitlines() == [
        "job_0123456789 completed in 1m 30s: 98 succeeded, 2 failed",
        "12,345 prompt and 67,890 completion tokens, 1,234 tokens/s",
        "results: out/results.jsonl",
    ]


@pytest.mark.parametrize("output", [None, "-"])
def test_results_on_stdout_have_no_place_to_name(over: Job, output: str | None) -> None:
    assert "results" not in summarize(over, output)


def test_a_job_that_never_ran_is_summarized_too(make_job: Callable[..., Job]) -> None:
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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (90, "1m 30s"),
        (3599, "59m 59s"),
        (3600, "1h 00m"),
        (86_400 * 3 + 60, "72h 01m"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


# the list


def rows(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_the_list_has_a_line_for_each_job_in_the_order_given(
    make_job: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    print_jobs([make_job(id="job_b"), make_job(id="job_a", name="nightly")])
    title, *lines = rows(capsys)
    assert title.split() == ["JOB", "NAME", "MODEL", "STATE", "DONE", "FAILED", "TOTAL", "CREATED"]
    assert [line.split()[0] for line in lines] == ["job_b", "job_a"]
    assert lines[1].split() == [
        *(
            "job_a",
            "nightly",
            "hermes-2-pro-mistral-7b",
            "in_progress",
            "18",
            "2",
            "100",
            "2023-11-14",
            "22:13",
        ),
    ]


@pytest.mark.parametrize("columns", ["80", "20"])
def test_nothing_is_cut_off_where_no_terminal_is(
    make_job: Callable[..., Job],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
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


@pytest.mark.parametrize("columns", ["90", "100", "200"])
def test_a_terminal_shows_every_job_s_id_and_state_whole(
    make_job: Callable[..., Job],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", columns)
    print_jobs([make_job(name="日本" * 100), make_job(name="n" * 200), make_job()])
    _, *lines = rows(capsys)
    assert len(lines) == 3
    for line in lines:
        assert "job_0123456789  " in line
        assert "  in_progress    18       2    100  2023-11-14 22:13" in line
        assert cell_len(line) <= int(columns)


@pytest.mark.parametrize(
    "name", ["[bold]x[/bold]", "[/nothing]", ":fire: x", "https://a.example/b 123", "日本"]
)
def test_a_name_is_shown_as_it_is(
    make_job: Callable[..., Job], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    print_jobs([make_job(name=name)])
    assert name in rows(capsys)[1]


def test_a_name_does_nothing_to_a_terminal(
    make_job: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    print_jobs([make_job(name="a\n\x1b[2Jb")])
    lines = rows(capsys)
    assert len(lines) == 2
    assert "a\ufffd\ufffd[2Jb" in lines[1]


def test_an_empty_list_is_its_titles(capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs([])
    assert len(rows(capsys)) == 1


# while it runs


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(display, "time", made)
    return made


def test_without_a_terminal_there_is_a_line_now_and_then_on_stderr(
    make_job: Callable[..., Job], over: Job, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with LiveView() as view:
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


def test_a_line_of_progress_is_one_line_however_narrow_the_screen(
    make_job: Callable[..., Job], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    with LiveView() as view:
        view.update(make_job())
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_on_a_terminal_there_is_a_bar_on_stderr(
    make_job: Callable[..., Job], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with LiveView() as view:
        view.update(None)
        view.update(make_job())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "20/100" in captured.err
    assert "1,234 tokens/s" in captured.err
