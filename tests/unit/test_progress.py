"""Waiting for a job and saying where it stands, as other programs read it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from db import queries
from db.database import Database
from db.errors import DatabaseUnavailableError, NotFoundError
from db.queries import Counts, Job
from db.states import JobState
from jobs import progress
from jobs.cards import Card
from jobs.progress import counts_as_dict, format_time, job_as_dict, wait
from jobs.settings import Settings
from jobs.submit import SubmitOptions, submit


class Clock:
    """Time that passes only where somebody sleeps; `at` calls something when it gets there."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at: dict[float, Callable[[], object]] = {}

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for due in [moment for moment in self.at if moment <= self.now]:
            self.at.pop(due)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.fixture
def job(sqlite_database: Database, settings: Settings, card: Card, write: Any) -> Job:
    path = write({"prompt": "x"}, {"prompt": "y"})
    return submit(sqlite_database, settings, card, str(path), SubmitOptions()).job


def test_waiting_ends_when_the_job_does(
    sqlite_database: Database, job: Job, clock: Clock, finish: Any
) -> None:
    seen: list[JobState | None] = []
    clock.at[60.0] = lambda: finish(sqlite_database, job.id)
    ended = wait(sqlite_database, job.id, None, lambda polled: seen.append(polled.state if polled else None))
    assert ended.state is JobState.COMPLETED
    assert clock.now == pytest.approx(60, abs=1)
    assert (seen[0], seen[-1]) == (JobState.QUEUED, JobState.COMPLETED)


def test_waiting_ends_at_the_timeout_with_the_job_as_it_stands(
    sqlite_database: Database, job: Job, clock: Clock
) -> None:
    assert wait(sqlite_database, job.id, 10).state is JobState.QUEUED
    assert clock.now == pytest.approx(10, abs=1)


def test_no_time_at_all_is_one_look(sqlite_database: Database, job: Job, clock: Clock) -> None:
    assert wait(sqlite_database, job.id, 0).state is JobState.QUEUED
    assert clock.now == 0


def test_nobody_waits_for_a_job_that_is_not_there(sqlite_database: Database, clock: Clock) -> None:
    with pytest.raises(NotFoundError):
        wait(sqlite_database, "job_nobody")
    assert clock.now == 0


def test_a_database_that_is_away_is_waited_for(
    sqlite_database: Database, job: Job, clock: Clock, finish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_job = queries.get_job

    def be_away(*_: object) -> Job:
        raise DatabaseUnavailableError("away")

    def come_back() -> None:
        monkeypatch.setattr(queries, "get_job", get_job)
        finish(sqlite_database, job.id)

    monkeypatch.setattr(queries, "get_job", be_away)
    clock.at[30.0] = come_back
    seen: list[Job | None] = []
    assert wait(sqlite_database, job.id, None, seen.append).state is JobState.COMPLETED
    assert seen[0] is None
    monkeypatch.setattr(queries, "get_job", be_away)
    with pytest.raises(DatabaseUnavailableError):
        wait(sqlite_database, job.id, 5)


def test_the_total_is_the_sum_of_the_others() -> None:
    counts = counts_as_dict(Counts(pending=1, running=2, succeeded=4, failed=8, cancelled=16, expired=32))
    assert counts == {
        "total": 63,
        "pending": 1,
        "running": 2,
        "succeeded": 4,
        "failed": 8,
        "cancelled": 16,
        "expired": 32,
    }
    assert next(iter(counts)) == "total"


def test_a_running_job_has_a_rate_and_the_time_left(job: Job) -> None:
    running = replace(
        job,
        state=JobState.IN_PROGRESS,
        counts=Counts(pending=60, running=30, succeeded=10),
        requests_per_s=4.0 / 3,
        completion_tokens_per_s=99.99999,
    )
    shown = job_as_dict(running)
    assert (shown["requests_per_s"], shown["completion_tokens_per_s"], shown["eta_s"]) == (1.333, 100.0, 67.5)
    assert job_as_dict(replace(running, requests_per_s=None))["eta_s"] is None
    assert job_as_dict(replace(running, state=JobState.COMPLETED))["eta_s"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.2504, "2023-11-14T22:13:20.250Z"),
    ],
)
def test_times_are_iso_8601_in_utc(seconds: float | None, text: str | None) -> None:
    assert format_time(seconds) == text
