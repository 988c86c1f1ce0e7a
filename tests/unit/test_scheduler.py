"""A worker's scheduler: the sweep is never held up, and one thread fires all that is due."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import wait_until

from db import schedules
from db.database import Database
from db.errors import DatabaseUnavailableError
from jobs.settings import Settings
from workers import scheduler as module
from workers.scheduler import Scheduler


class Work:
    """What is due: so many times, each of which waits until it is let go."""

    def __init__(self, num_due: int) -> None:
        self.num_due = num_due
        self.num_fired = 0
        self.num_at_once = 0
        self.most_at_once = 0
        self.may_go_on = threading.Event()

    def list_due(self, _: Database) -> list[int]:
        return list(range(self.num_due))

    def fire_next(self, *_: object) -> bool:
        if self.num_due == 0:
            return False
        self.num_due -= 1
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        assert self.may_go_on.wait(30)
        self.num_at_once -= 1
        self.num_fired += 1
        return True


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    made = Work(3)
    monkeypatch.setattr(schedules, "list_due", made.list_due)
    monkeypatch.setattr(module, "fire_next", made.fire_next)
    yield made
    made.may_go_on.set()


@pytest.fixture
def scheduler(sqlite_database: Database, home: Path) -> Scheduler:
    return Scheduler(sqlite_database, Settings(home=home))


def test_a_look_does_not_wait_and_one_thread_fires_all(work: Work, scheduler: Scheduler) -> None:
    for _ in range(5):
        scheduler.look()
    wait_until(lambda: work.num_at_once, "it fires")
    scheduler.look()
    assert work.num_fired == 0
    work.may_go_on.set()
    wait_until(lambda: work.num_fired == 3, "all are fired")
    assert work.most_at_once == 1


def test_after_a_stop_nothing_more_is_fired(work: Work, scheduler: Scheduler) -> None:
    scheduler.look()
    wait_until(lambda: work.num_at_once, "it fires")
    scheduler.stop()
    work.may_go_on.set()
    wait_until(lambda: work.num_at_once == 0, "what was begun is over")
    assert scheduler._thread is not None
    scheduler._thread.join(30)
    scheduler.look()
    assert (work.num_fired, work.num_due) == (1, 2)


@pytest.mark.parametrize("error", [DatabaseUnavailableError("away"), ZeroDivisionError("bug")])
def test_the_next_look_tries_again(
    work: Work,
    scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fail(*_: object) -> bool:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(module, "fire_next", fail)
        scheduler.look()
        assert scheduler._thread is not None
        scheduler._thread.join(30)
    assert str(error) in caplog.text
    work.may_go_on.set()
    scheduler.look()
    wait_until(lambda: work.num_fired == 3, "they are fired")
