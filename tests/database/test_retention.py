"""A job that is deleted is gone at once for everybody, and its rows go in steps that survive a crash."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from database.rows import (
    CARD,
    LEASE_S,
    Call,
    Pause,
    cancel,
    claim,
    commit,
    finish_all,
    job_row,
    num_rows,
    pass_deadline,
    register,
    set_columns,
    stage,
    submit,
)
from soundness import assert_job_is_sound

from db import leases, outcomes, queries, recovery, transitions
from db.database import Database
from db.errors import NotFoundError, WrongStateError
from db.recovery import Recovery
from db.states import JobState
from db.tables import jobs, now_s
from jobs import control, export, retention, verify
from jobs.forms import native


class _Crash(Exception):  # noqa: N818  a power cut is no error
    """The process is gone."""


def _sweep(database: Database) -> Recovery:
    return recovery.run_once(database, LEASE_S, max_attempts=3)


def _end(database: Database, job_id: str, state: JobState) -> str:
    """A job that is over, one of its lines bad from the start."""
    submit(database, job_id, num_requests=7, bad=[1])
    if state is JobState.COMPLETED:
        finish_all(database)
    elif state is JobState.CANCELLED:
        cancel(database, job_id)
    else:
        pass_deadline(database, job_id)
        _sweep(database)
    assert job_row(database, job_id)["state"] == state
    return job_id


def _age(database: Database, job_id: str, age_s: float) -> None:
    set_columns(database, jobs, jobs.c.id == job_id, finished_at=now_s() - age_s)


def _crash_at(monkeypatch: pytest.MonkeyPatch, name: str, num_calls: int) -> None:
    """After so many calls of a function of `transitions`, whatever transaction is open is rolled back."""
    real, calls = getattr(transitions, name), iter(range(num_calls))

    def call(*arguments: Any) -> Any:
        value = real(*arguments)
        if next(calls, None) is None:
            raise _Crash
        return value

    monkeypatch.setattr(transitions, name, call)


# --- delete ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in JobState if state.is_final])
def test_a_job_that_is_over_is_deleted_with_all_its_rows_and_no_others(
    database: Database, monkeypatch: pytest.MonkeyPatch, state: JobState
) -> None:
    monkeypatch.setattr(recovery, "_ERASE_ROWS", 3)
    register(database)
    _end(database, "kept", state)
    before = num_rows(database, "kept")
    retention.delete(database, _end(database, "job_a", state))
    assert num_rows(database, "job_a") == 0
    assert num_rows(database, "kept") == before
    assert_job_is_sound(database, "kept")


@pytest.mark.parametrize("state", ["validating", "queued", "in_progress", "cancelling"])
def test_a_job_that_is_not_over_is_not_deleted(database: Database, state: str) -> None:
    register(database)
    stage(database)
    if state != "validating":
        commit(database, "job_a")
    if state in ("in_progress", "cancelling"):
        claim(database)
    if state == "cancelling":
        cancel(database, "job_a")
    before = job_row(database, "job_a"), num_rows(database, "job_a")
    # what is not visible is not there
    with pytest.raises(NotFoundError if state == "validating" else WrongStateError):
        retention.delete(database, "job_a")
    assert before[0]["state"] == state
    assert (job_row(database, "job_a"), num_rows(database, "job_a")) == before


def test_a_job_that_is_missing_or_deleted_twice_is_not_found(database: Database) -> None:
    register(database)
    _end(database, "job_a", JobState.COMPLETED)
    retention.delete(database, "job_a")
    for job_id in ("job_a", "job_missing"):
        with pytest.raises(NotFoundError):
            retention.delete(database, job_id)


def test_a_job_that_is_being_deleted_is_invisible_at_once(database: Database, tmp_path: Path) -> None:
    register(database)
    stage(database)
    commit(database, "job_a", key="nightly")
    finish_all(database)
    assert queries.find_job_by_key(database, "nightly") is not None
    with database.write() as tx:
        transitions.delete_job(tx, "job_a")
    assert num_rows(database, "job_a") > 0, "its rows are still there"
    for call in (
        lambda: queries.get_job(database, "job_a"),
        lambda: control.cancel(database, "job_a"),
        lambda: retention.delete(database, "job_a"),
        lambda: verify.verify(database, "job_a"),
        lambda: export.export(database, "job_a", str(tmp_path / "out.jsonl")),
    ):
        with pytest.raises(NotFoundError):
            call()
    assert queries.list_jobs(database, 9) == queries.list_jobs(database, 9, [JobState.DELETING]) == []
    assert queries.list_finished(database, -1.0, 9) == []
    assert queries.find_job_by_key(database, "nightly") is None
    assert leases.claim(database, "w1", CARD, LEASE_S) is None
    # its key is free again before its rows are gone
    stage(database, "job_b")
    assert commit(database, "job_b", key="nightly")
    assert _sweep(database) == Recovery(num_jobs_erased=1)
    assert num_rows(database, "job_a") == 0
    found = queries.find_job_by_key(database, "nightly")
    assert found is not None
    assert found.id == "job_b"


@pytest.mark.parametrize(
    ("name", "num_calls"), [("delete_job", 0), ("erase_rows", 0), ("erase_rows", 2), ("erase_job", 0)]
)
def test_a_deletion_that_was_cut_short_is_continued(
    database: Database, monkeypatch: pytest.MonkeyPatch, name: str, num_calls: int
) -> None:
    monkeypatch.setattr(recovery, "_ERASE_ROWS", 2)
    register(database)
    _end(database, "job_a", JobState.COMPLETED)
    before = num_rows(database, "job_a")
    with monkeypatch.context() as crashing:
        _crash_at(crashing, name, num_calls)
        with pytest.raises(_Crash):
            retention.delete(database, "job_a")
    if name == "delete_job":
        # nothing of it was committed: the job stands, whole
        assert _sweep(database) == Recovery()
        assert num_rows(database, "job_a") == before
        assert_job_is_sound(database, "job_a")
        return
    assert queries.list_jobs(database, 9) == []
    # of 7 requests, 7 results, 4 chunks and the job: 2 requests with their results a step
    assert num_rows(database, "job_a") == {0: 19, 2: 11}[num_calls] - (14 if name == "erase_job" else 0)
    assert _sweep(database) == Recovery(num_jobs_erased=1)
    assert num_rows(database, "job_a") == 0
    assert _sweep(database) == Recovery()


# --- a reader meanwhile ---------------------------------------------------------------------------------------


def test_a_step_of_a_deletion_locks_nobody_out(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its transaction is open, others submit, claim, record, cancel, and end another deletion."""
    database = postgres_database
    monkeypatch.setattr(recovery, "_ERASE_ROWS", 3)
    register(database)
    for job_id in ("big", "small"):
        _end(database, job_id, JobState.COMPLETED)
    pause = Pause(monkeypatch, "erase_rows")
    deleting = Call(partial(retention.delete, database, "big"))
    try:
        pause.wait_reached()
        with database.write() as tx:
            transitions.delete_job(tx, "small")
        assert recovery.erase_job(database, "small")
        submit(database, "next")
        finish_all(database)
        submit(database, "cancelled")
        cancel(database, "cancelled")
        assert [job.id for job in queries.list_jobs(database, 9)] == ["cancelled", "next"]
    finally:
        pause.end()
    deleting.result()
    assert num_rows(database, "big") == 0
    for job_id in ("next", "cancelled"):
        assert_job_is_sound(database, job_id)


def test_an_export_of_a_job_that_is_deleted_meanwhile_leaves_no_file(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it read is too short, and would pass for the whole."""
    monkeypatch.setattr(outcomes, "_PAGE_REQUESTS", 2)
    register(database)
    _end(database, "job_a", JobState.COMPLETED)
    (tmp_path / "out.jsonl").write_text("of old")
    _delete_at_the_first_line(monkeypatch, export, database)
    with pytest.raises(NotFoundError):
        export.export(database, "job_a", str(tmp_path / "out.jsonl"))
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.jsonl"]
    assert (tmp_path / "out.jsonl").read_text() == "of old"


def test_a_job_that_is_deleted_while_it_is_verified_is_not_unsound(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(outcomes, "_PAGE_REQUESTS", 2)
    register(database)
    _end(database, "job_a", JobState.COMPLETED)
    output = str(tmp_path / "out.jsonl")
    export.export(database, "job_a", output)
    _delete_at_the_first_line(monkeypatch, verify, database)
    with pytest.raises(NotFoundError):
        verify.verify(database, "job_a", output_path=output)


def _delete_at_the_first_line(monkeypatch: pytest.MonkeyPatch, module: Any, database: Database) -> None:
    real = native.format_line

    def format_line(outcome: outcomes.Outcome) -> bytes:
        if outcome.index == 0:
            retention.delete(database, "job_a")
        return real(outcome)

    monkeypatch.setattr(module, "format_line", format_line)


# --- prune ----------------------------------------------------------------------------------------------------


@pytest.fixture
def aged(database: Database) -> Database:
    """Jobs that ended 10, 20 and 30 minutes ago, one that just ended and one that runs."""
    register(database)
    for job_id, state, age_s in (
        ("young", JobState.COMPLETED, 600.0),
        ("oldest", JobState.CANCELLED, 1800.0),
        ("old", JobState.EXPIRED, 1200.0),
        ("new", JobState.COMPLETED, 0.0),
    ):
        _age(database, _end(database, job_id, state), age_s)
    submit(database, "runs")
    claim(database)
    set_columns(database, jobs, jobs.c.id == "runs", created_at=1.0, started_at=1.0)
    return database


def test_a_dry_run_says_what_would_be_deleted_and_deletes_nothing(aged: Database) -> None:
    before = [num_rows(aged, job_id) for job_id in ("oldest", "old", "young")]
    would = retention.prune(aged, 900.0, is_dry_run=True)
    assert [(job.id, job.state) for job in would] == [("oldest", "cancelled"), ("old", "expired")]
    assert [num_rows(aged, job_id) for job_id in ("oldest", "old", "young")] == before


@pytest.mark.parametrize("page", [1, 100])
def test_jobs_that_ended_long_ago_are_deleted_the_oldest_first(
    aged: Database, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(retention, "_PAGE_JOBS", page)
    pruned = retention.prune(aged, 900.0, is_dry_run=False)
    assert [(job.id, job.counts.total) for job in pruned] == [("oldest", 7), ("old", 7)]
    assert num_rows(aged, "oldest") == num_rows(aged, "old") == 0
    assert {job.id for job in queries.list_jobs(aged, 9)} == {"young", "new", "runs"}
    assert retention.prune(aged, 900.0, is_dry_run=False) == []
    for job_id in ("young", "new"):
        assert_job_is_sound(aged, job_id)


def test_a_job_that_runs_is_never_pruned(aged: Database) -> None:
    assert len(retention.prune(aged, -60.0, is_dry_run=False)) == 4
    assert [job.id for job in queries.list_jobs(aged, 9)] == ["runs"]


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_job_that_somebody_else_deletes_first_is_passed_over(
    aged: Database, monkeypatch: pytest.MonkeyPatch, *, is_whole: bool
) -> None:
    list_finished = queries.list_finished

    def delete_first(*arguments: Any) -> list[queries.Job]:
        page = list_finished(*arguments)
        if any(job.id == "oldest" for job in page):
            with aged.write() as tx:
                transitions.delete_job(tx, "oldest")
            if is_whole:
                recovery.erase_job(aged, "oldest")
        return page

    monkeypatch.setattr(queries, "list_finished", delete_first)
    assert [job.id for job in retention.prune(aged, 900.0, is_dry_run=False)] == ["old"]
