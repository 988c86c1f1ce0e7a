"""Schedules: each due time becomes one job, however many workers see it, and whatever dies on the way."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from database.rows import PROMPT, Call, all_at_once, set_columns
from servers import wait_until
from sqlalchemy import text

from db import queries, schedules
from db.database import Database
from db.errors import DatabaseUnavailableError, LeaseLostError, NotFoundError, SettingsError
from db.queries import Job
from db.schedules import Due, Firing, Schedule
from db.tables import now_s
from db.tables import schedules as table
from jobs import firing as firings
from jobs.cards import find_card
from jobs.cron import next_due_at
from jobs.firing import fire_next
from jobs.schedules import ScheduledSubmit, add
from jobs.settings import Settings
from jobs.submit import SubmitOptions

LEASE_S = 30.0

Add = Callable[..., Schedule]


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home, model="smollm2-135m-instruct", engine="echo", lease_s=LEASE_S)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "x"}\n' * 3)
    return path


@pytest.fixture
def add_due(database: Database, settings: Settings, source: Path) -> Add:
    """A schedule for every minute, due since a while."""

    def make(
        name: str = "nightly",
        *,
        since_s: float = 120,
        cron: str = "* * * * *",
        path: Path = source,
        job_name: str | None = None,
    ) -> Schedule:
        card = find_card(settings.home, settings.model)
        scheduled = ScheduledSubmit.of([str(path)], card, SubmitOptions(name=job_name))
        add(database, name, cron, "UTC", ["submit", str(path)], scheduled, replace=False)
        due_at = (schedules.read_clock(database) - since_s) // 60 * 60
        change(database, name, due_at=due_at)
        return schedules.get(database, name)

    return make


@pytest.fixture
def fire(database: Database, settings: Settings) -> Callable[[], bool]:
    return lambda: fire_next(database, settings, lambda _: None)


def job_list(database: Database) -> list[Job]:
    return queries.list_jobs(database, 100)


def only_due(database: Database) -> Due:
    (due,) = schedules.list_due(database)
    return due


def claim(database: Database, due: Due) -> Firing | None:
    return schedules.claim(database, due, next_due_at(due.cron, due.timezone, due.now), LEASE_S)


def must(firing: Firing | None) -> Firing:
    assert firing is not None, "nobody got it"
    return firing


def change(database: Database, name: str = "nightly", **values: object) -> None:
    set_columns(database, table, table.c.name == name, **values)


def end_lease(database: Database, name: str = "nightly") -> None:
    change(database, name, lease_until=now_s() - 1)


# one job a due time


def test_nothing_is_due_before_its_time(database: Database, add_due: Add, fire: Callable[[], bool]) -> None:
    add_due(since_s=-120)
    assert schedules.list_due(database) == []
    assert not fire()
    assert job_list(database) == []


def test_a_due_time_becomes_one_job_that_is_named_after_it(
    database: Database, settings: Settings, add_due: Add
) -> None:
    was_due_at = add_due(name="nightly", cron="* * * * *", since_s=3600).due_at
    change(database, last_error="old")
    announced: list[Job] = []
    assert fire_next(database, settings, announced.append)
    (job,) = job_list(database)
    assert [one.id for one in announced] == [job.id]
    found = schedules.get(database, "nightly")
    assert (found.last_job_id, found.last_error, found.num_fired) == (job.id, None, 1)
    now = schedules.read_clock(database)
    assert not found.is_firing
    assert found.last_fired_at == pytest.approx(now, abs=60)
    # an hour of minutes was missed: it is made up once
    assert now - 60 < found.due_at <= now + 60
    assert found.due_at > was_due_at
    assert queries.find_job_by_key(database, f"schedule:nightly:{was_due_at:.0f}") == job


def test_the_job_s_name_tells_the_due_time_and_not_when_it_was_fired(
    database: Database, add_due: Add, fire: Callable[[], bool]
) -> None:
    add_due(job_name="n-%F-%H%M")
    change(database, due_at=1_700_000_000 // 60 * 60)
    assert fire()
    assert [job.name for job in job_list(database)] == ["n-2023-11-14-2213"]


def test_many_workers_at_once_fire_each_due_time_once(
    database: Database, settings: Settings, add_due: Add
) -> None:
    for name in ("a", "b", "c"):
        add_due(name)
        # once: the next due time may come while the test runs
        change(database, name, cron="0 0 1 1 *")
    announced: list[Job] = []

    def work() -> int:
        num_fired = 0
        while fire_next(database, settings, announced.append):
            num_fired += 1
        return num_fired

    assert sum(all_at_once([work] * 8)) == 3
    found = {one.name: one for one in schedules.list_all(database)}
    assert [one.num_fired for one in found.values()] == [1, 1, 1]
    assert {one.last_job_id for one in found.values()} == {job.id for job in job_list(database)}
    assert len(announced) == len(job_list(database)) == 3


def test_who_saw_it_and_came_second_gets_nothing(database: Database, add_due: Add) -> None:
    add_due()
    due = only_due(database)
    claims = all_at_once([partial(claim, database, due)] * 6)
    assert sum(one is not None for one in claims) == 1
    assert schedules.list_due(database) == [], "a due time that is claimed is no more due"


def test_a_schedule_that_was_changed_since_it_was_seen_is_left_alone(
    database: Database, add_due: Add
) -> None:
    add_due()
    due = only_due(database)
    change(database, cron="0 0 * * *")
    assert claim(database, due) is None


def test_a_next_due_time_waits_for_the_one_that_is_being_fired(database: Database, add_due: Add) -> None:
    add_due()
    firing = must(claim(database, only_due(database)))
    change(database, due_at=firing.due_at + 60)
    assert schedules.list_due(database) == []
    schedules.finish(database, firing, "job_a")
    assert only_due(database).due_at == firing.due_at + 60


# what dies on the way


def test_a_worker_that_dies_before_it_submits_is_replaced(
    database: Database, add_due: Add, fire: Callable[[], bool]
) -> None:
    was_due_at = add_due().due_at
    dead = must(claim(database, only_due(database)))
    assert not fire(), "its lease lives"
    assert schedules.get(database, "nightly").is_firing
    end_lease(database)
    assert fire()
    (job,) = job_list(database)
    assert queries.find_job_by_key(database, f"schedule:nightly:{was_due_at:.0f}") == job
    for late in (
        partial(schedules.finish, database, dead, "job_x"),
        partial(schedules.fail, database, dead, "late"),
        partial(schedules.renew, database, dead, LEASE_S),
    ):
        with pytest.raises(LeaseLostError):
            late()
    found = schedules.get(database, "nightly")
    assert (found.last_job_id, found.last_error, found.num_fired) == (job.id, None, 1)


def test_a_worker_that_dies_after_its_submit_leaves_one_job(
    database: Database,
    add_due: Add,
    fire: Callable[[], bool],
    monkeypatch: pytest.MonkeyPatch,
    source: Path,
) -> None:
    add_due()
    with monkeypatch.context() as patched:
        patched.setattr(schedules, "finish", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            fire()
    (job,) = job_list(database)
    source.unlink()  # it is needed no more
    end_lease(database)
    assert fire()
    assert job_list(database) == [job]
    assert schedules.get(database, "nightly").last_job_id == job.id


def test_of_many_one_takes_it_up(database: Database, add_due: Add) -> None:
    add_due()
    first = must(claim(database, only_due(database)))
    end_lease(database)
    due = only_due(database)
    taken = [one for one in all_at_once([partial(schedules.take_up, database, due, LEASE_S)] * 6) if one]
    assert [(one.due_at, one.num_tries) for one in taken] == [(first.due_at, 2)]
    assert taken[0].lease_id != first.lease_id


def test_who_is_back_in_time_keeps_it(database: Database, add_due: Add) -> None:
    add_due()
    firing = must(claim(database, only_due(database)))
    end_lease(database)
    due = only_due(database)
    schedules.renew(database, firing, LEASE_S)
    assert schedules.take_up(database, due, LEASE_S) is None
    schedules.finish(database, firing, "job_a")


def test_a_worker_that_froze_and_the_one_in_its_place_make_one_job(
    database: Database, settings: Settings, add_due: Add
) -> None:
    add_due()
    frozen = must(claim(database, only_due(database)))
    end_lease(database)
    other = must(schedules.take_up(database, only_due(database), LEASE_S))
    made = all_at_once([partial(firings._job_of, database, settings, one) for one in (frozen, other)])
    assert made[0].id == made[1].id
    assert len(job_list(database)) == 1


def test_a_submit_that_takes_longer_than_the_lease_keeps_it(
    database: Database, settings: Settings, add_due: Add, tmp_path: Path
) -> None:
    pipe = tmp_path / "slow.jsonl"
    os.mkfifo(pipe)
    add_due(path=pipe)
    quick = settings.model_copy(update={"lease_s": 0.8})
    firing = Call(partial(fire_next, database, quick, lambda _: None))

    def lease_until() -> float:
        with database.read() as tx:
            found: float | None = tx.execute(text("SELECT lease_until FROM schedules")).scalar_one()
        return found or 0.0

    first = wait_until(lease_until, "it is claimed")
    with pipe.open("w") as writing:
        wait_until(lambda: lease_until() > first + 0.8, "the lease was renewed past its end")
        assert schedules.list_due(database) == []
        writing.write('{"prompt": "x"}\n')
    assert firing.result()
    assert [job.counts.total for job in job_list(database)] == [1]


def test_a_database_that_goes_away_is_no_failure(
    database: Database,
    add_due: Add,
    fire: Callable[[], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_due()

    def away(*_: object) -> None:
        raise DatabaseUnavailableError("away")

    with monkeypatch.context() as patched:
        patched.setattr(queries, "find_job_by_key", away)
        assert fire()
    found = schedules.get(database, "nightly")
    assert (found.is_firing, found.last_error, found.last_fired_at) == (True, None, None)
    end_lease(database)
    assert fire()
    assert len(job_list(database)) == 1


def test_what_kills_every_worker_is_given_up(
    database: Database, add_due: Add, fire: Callable[[], bool]
) -> None:
    add_due()
    claim(database, only_due(database))
    for _ in range(4):
        end_lease(database)
        must(schedules.take_up(database, only_due(database), LEASE_S))
    end_lease(database)
    assert fire()
    assert job_list(database) == []
    found = schedules.get(database, "nightly")
    assert not found.is_firing
    assert found.last_error is not None
    assert "5 tries" in found.last_error


# what cannot be submitted


def test_a_missing_file_is_told_and_the_next_due_time_comes(
    database: Database,
    add_due: Add,
    fire: Callable[[], bool],
    source: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = source.read_text()
    source.unlink()
    add_due()
    assert fire()
    found = schedules.get(database, "nightly")
    assert found.last_error is not None
    assert str(source) in found.last_error
    assert (found.is_firing, found.last_job_id, found.num_fired) == (False, None, 0)
    assert found.last_fired_at is not None
    assert found.due_at > schedules.read_clock(database) - 60
    assert found.last_error in caplog.text
    source.write_text(held)
    change(database, due_at=60.0)
    assert fire()
    assert (schedules.get(database, "nightly").last_error, len(job_list(database))) == (None, 1)


@pytest.mark.parametrize("line", ["{", f'{{"prompt": ["{PROMPT}"]}}'])
def test_a_bad_line_is_told_without_its_content(
    database: Database,
    add_due: Add,
    fire: Callable[[], bool],
    source: Path,
    caplog: pytest.LogCaptureFixture,
    line: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    source.write_text(f"{line}\n")
    add_due()
    assert fire()
    error = schedules.get(database, "nightly").last_error
    assert error is not None
    assert "1 of 1 lines are bad" in error
    assert PROMPT not in caplog.text + error


def test_a_bug_is_told_without_its_text(
    database: Database,
    add_due: Add,
    fire: Callable[[], bool],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_due()

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError(PROMPT)

    monkeypatch.setattr(ScheduledSubmit, "run", fail)
    assert fire()
    error = schedules.get(database, "nightly").last_error
    assert error is not None
    assert "ZeroDivisionError" in error
    assert PROMPT not in caplog.text + error
    assert "in fail" in caplog.text, "where it happened is told"


def test_a_zone_that_this_machine_does_not_know_stops_no_other_schedule(
    database: Database, add_due: Add, fire: Callable[[], bool], caplog: pytest.LogCaptureFixture
) -> None:
    add_due("a", since_s=600)
    add_due("b")
    change(database, "a", timezone="Middle-earth/Shire")
    assert fire()
    assert schedules.get(database, "b").num_fired == 1
    assert schedules.get(database, "a").due_at < schedules.read_clock(database), "left to another"
    assert "schedule a is left to other workers" in caplog.text


# adding and removing


def test_a_name_is_taken_until_it_is_replaced(database: Database, add_due: Add) -> None:
    add_due()
    with pytest.raises(SettingsError, match="there is a schedule nightly; --replace"):
        add_due()
    scheduled = ScheduledSubmit.from_json(schedules.get(database, "nightly").submit)
    again = add(database, "nightly", "0 2 * * *", "UTC", ["submit"], scheduled, replace=True)
    assert (again.cron, again.num_fired) == ("0 2 * * *", 0)
    assert again.due_at > schedules.read_clock(database)
    assert [one.name for one in schedules.list_all(database)] == ["nightly"]


@pytest.fixture
def being_fired(database: Database, add_due: Add) -> Firing:
    add_due()
    return must(claim(database, only_due(database)))


def test_a_removed_schedule_s_last_job_is_still_made(
    database: Database, settings: Settings, being_fired: Firing, caplog: pytest.LogCaptureFixture
) -> None:
    schedules.remove(database, "nightly")
    firings._fire(database, settings, being_fired, lambda _: None)
    assert len(job_list(database)) == 1
    assert "was removed" in caplog.text
    assert schedules.list_all(database) == []


def test_what_is_not_there_is_not_found(database: Database) -> None:
    for call in (schedules.get, schedules.remove):
        with pytest.raises(NotFoundError, match="promptmill schedule list"):
            call(database, "nightly")
    schedules.note_fired(database, "nightly", "job_a")
