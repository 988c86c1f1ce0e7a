"""Failed results are taken back in place: sums, chunks and positions are right at each step, whoever comes between."""

from collections.abc import Sequence
from functools import partial

import pytest
from database.rows import (
    Call,
    Pause,
    all_at_once,
    cancel,
    chunk_rows,
    claim,
    finish,
    finish_all,
    job_row,
    overlap,
    pass_deadline,
    positions,
    record,
    register,
    result_rows,
    submit,
    success,
)
from soundness import assert_job_is_sound
from sqlalchemy import Connection

from db import leases, outcomes, recovery, retries, transitions
from db.database import Database
from db.errors import LeaseLostError, NotFoundError, SettingsError, WrongStateError
from db.leases import NewResult
from db.states import ChunkState, JobState
from db.transitions import Lease
from jobs.retry import retry

_CODES = ("engine_error", "engine_crash")


def _failed(index: int, code: str = "engine_error") -> NewResult:
    """One that was counted before it failed."""
    return NewResult(index, error_code=code, error_message="it broke", prompt_tokens=7, completion_tokens=2)


def _record_with(database: Database, lease: Lease, failed: Sequence[NewResult]) -> None:
    by_index = {one.index: one for one in failed}
    pending = [one.index for one in leases.load_requests(database, lease)]
    record(database, lease, [by_index.get(index, success(index)) for index in pending], is_last=True)


@pytest.fixture
def job_id(database: Database) -> str:
    """Completed: ten requests in five chunks, a bad line at 1; 0, 4 and 9 broke, 5 is too long."""
    register(database)
    made = submit(database, num_requests=10, bad=[1], deadline_s=60.0)
    for _ in range(5):
        lease = claim(database)
        broken = [_failed(0), _failed(4), _failed(5, "input_too_long"), _failed(9, "engine_crash")]
        _record_with(database, lease, broken)
    assert_job_is_sound(database, made)
    return made


def _failures(database: Database, job_id: str) -> list[int]:
    return [row["index"] for row in result_rows(database, job_id) if row["status"] == "failed"]


def _finished(database: Database, job_id: str, after: int) -> list[tuple[int, int, str]]:
    found = outcomes.iterate_finished(database, outcomes.read_extent(database, job_id), after)
    return [(one.position or 0, one.index, one.status.value) for one in found]


def test_what_may_succeed_runs_again_and_nothing_else_moves(database: Database, job_id: str) -> None:
    before = {row["index"]: row for row in result_rows(database, job_id)}
    started_at = job_row(database, job_id)["started_at"]
    done = retry(database, job_id)
    assert (done.num_retried, done.job.state) == (3, JobState.QUEUED)
    assert {row["index"]: row for row in result_rows(database, job_id)} == {
        index: row for index, row in before.items() if index not in (0, 4, 9)
    }
    job = job_row(database, job_id)
    assert (job["num_succeeded"], job["num_failed"], job["num_retried"]) == (5, 2, 3)
    assert (job["prompt_tokens"], job["completion_tokens"]) == (5 * 3 + 7, 5 * 5 + 2)
    assert (job["finished_at"], job["deadline_at"]) == (None, None)
    chunks = chunk_rows(database, job_id)
    assert [chunk["state"] for chunk in chunks] == ["queued", "done", "queued", "done", "queued"]
    assert [chunk["attempt"] for chunk in chunks] == [0, 1, 0, 1, 0]
    assert [chunk["finished_at"] is None for chunk in chunks] == [True, False, True, False, True]
    assert [(chunk["num_succeeded"], chunk["num_failed"]) for chunk in chunks] == [
        (0, 1),
        (2, 0),
        (0, 1),
        (2, 0),
        (1, 0),
    ]
    finish_all(database)
    assert_job_is_sound(database, job_id)
    assert _failures(database, job_id) == [1, 5]
    assert job_row(database, job_id)["started_at"] == started_at


def test_a_follower_who_was_through_sees_the_new_outcomes_alone(database: Database, job_id: str) -> None:
    before = positions(database, job_id)
    retry(database, job_id)
    assert _finished(database, job_id, 10) == []
    finish_all(database)
    after = positions(database, job_id)
    assert {index: after[index] for index in before if index not in (0, 4, 9)}.items() <= before.items()
    assert sorted(_finished(database, job_id, 10)) == [
        (11, 0, "succeeded"),
        (12, 4, "succeeded"),
        (13, 9, "succeeded"),
    ]
    assert len(_finished(database, job_id, 0)) == 10


def test_what_never_ran_after_a_retry_comes_behind_every_position_that_was_given(
    database: Database, job_id: str
) -> None:
    retry(database, job_id)
    _record_with(database, claim(database), [])
    cancel(database, job_id)
    last = [(11, 0, "succeeded"), (12, 4, "cancelled"), (13, 9, "cancelled")]
    for after in range(10, 15):
        assert _finished(database, job_id, after) == last[after - 10 :]
    assert_job_is_sound(database, job_id)


def test_failing_again_it_can_be_retried_again(database: Database, job_id: str) -> None:
    for _ in range(3):
        assert retry(database, job_id, ["code=engine_error"]).num_retried == 2
        while (lease := leases.claim(database, "w1", "tiny", 300.0)) is not None:
            _record_with(database, lease, [_failed(0), _failed(4)])
    assert job_row(database, job_id)["num_retried"] == 6
    assert_job_is_sound(database, job_id)


def test_the_newest_results_are_not_found_by_counting_positions_back(database: Database, job_id: str) -> None:
    retry(database, job_id)
    extent = outcomes.read_extent(database, job_id)
    assert extent.last_position == 10
    assert extent.num_results == 7
    for num_newest in range(12):
        after = outcomes.position_before(database, extent, num_newest)
        newest = list(outcomes.iterate_finished(database, extent, after, ran_only=True))
        assert len(newest) == min(num_newest, 7)


def test_with_nothing_to_retry_nothing_moves(database: Database, job_id: str) -> None:
    retry(database, job_id)
    finish_all(database)
    before = job_row(database, job_id)
    assert retry(database, job_id).num_retried == 0
    assert job_row(database, job_id) == before


@pytest.mark.parametrize("where", ["code=input_too_long", "code=nope", "status=failed", "code"])
def test_what_would_fail_again_is_refused(database: Database, job_id: str, where: str) -> None:
    with pytest.raises(SettingsError, match=f"--where {where}: "):
        retry(database, job_id, [where])
    assert _failures(database, job_id) == [0, 1, 4, 5, 9]


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.EXPIRED])
def test_a_job_that_was_cut_off_stays_over(database: Database, state: JobState) -> None:
    register(database)
    made = submit(database)
    _record_with(database, claim(database), [_failed(0)])
    if state is JobState.CANCELLED:
        cancel(database, made)
    else:
        pass_deadline(database, made)
        recovery.run_once(database, 60.0, 3)
    with pytest.raises(WrongStateError, match="promptmill rerun job_a") as caught:
        retry(database, made)
    assert caught.value.current == state
    assert _failures(database, made) == [0]
    assert_job_is_sound(database, made)


def test_of_a_job_under_way_only_chunks_that_are_done_lose_results(database: Database) -> None:
    register(database)
    made = submit(database, num_requests=6)
    _record_with(database, claim(database), [_failed(0)])
    running = claim(database)
    record(database, running, [_failed(2)], is_last=False)
    assert retry(database, made).num_retried == 1
    assert job_row(database, made)["state"] == JobState.IN_PROGRESS
    assert _failures(database, made) == [2]
    finish(database, running)
    finish_all(database)
    assert_job_is_sound(database, made)


def test_a_suspect_stays_alone(database: Database) -> None:
    """What killed its worker while it ran alone does so again perhaps, and takes nobody along."""
    register(database)
    made = submit(database, num_requests=1)
    lease = claim(database)
    recovery.worker_died(database, "w1", 1)
    lease = claim(database)
    leases.isolate(database, lease)
    recovery.worker_died(database, "w1", 1)
    assert job_row(database, made)["state"] == JobState.COMPLETED
    assert retry(database, made).num_retried == 1
    again = claim(database)
    assert (again.is_suspect, again.is_alone, again.attempt) == (True, False, 1)
    finish(database, again)
    assert_job_is_sound(database, made)


# --- in steps -------------------------------------------------------------------------------------------------


class _CrashError(Exception):
    pass


@pytest.fixture
def one_chunk_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_STEP_REQUESTS", 2)


@pytest.mark.usefixtures("one_chunk_a_step")
@pytest.mark.parametrize("num_steps", range(5))
def test_a_crash_between_any_two_steps_leaves_a_job_that_runs_on(
    database: Database, job_id: str, monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    with monkeypatch.context() as patched:
        _crash_at_step(patched, num_steps)
        with pytest.raises(_CrashError):
            retry(database, job_id)
    assert recovery.run_once(database, 60.0, 3) == recovery.Recovery()
    left = [index for index in (0, 4, 9) if index // 2 >= num_steps]
    assert _failures(database, job_id) == sorted([1, 5, *left])
    finish_all(database)
    assert_job_is_sound(database, job_id)
    assert retry(database, job_id).num_retried == len(left)
    finish_all(database)
    assert_job_is_sound(database, job_id)
    assert _failures(database, job_id) == [1, 5]


def _crash_at_step(patched: pytest.MonkeyPatch, num_steps: int) -> None:
    """In the transaction, after its last statement."""
    real = retries._step
    calls: list[int] = []

    def step(tx: Connection, job_id: str, error_codes: Sequence[str], first: int) -> int:
        told = real(tx, job_id, error_codes, first)
        calls.append(1)
        if len(calls) > num_steps:
            raise _CrashError
        return told

    patched.setattr(retries, "_step", step)


@pytest.mark.usefixtures("one_chunk_a_step")
def test_workers_that_are_faster_than_the_steps_do_no_harm(database: Database, job_id: str) -> None:
    """The job is over again and again in between."""
    taken = []
    for first in range(0, 10, 2):
        with database.write() as tx:
            taken.append(retries._step(tx, job_id, _CODES, first))
        finish_all(database)
        assert_job_is_sound(database, job_id)
    assert taken == [1, 0, 1, 0, 1]
    assert _finished(database, job_id, 10) == [
        (11, 0, "succeeded"),
        (12, 4, "succeeded"),
        (13, 9, "succeeded"),
    ]


@pytest.mark.usefixtures("one_chunk_a_step")
def test_a_cancel_between_two_steps_ends_the_retry(database: Database, job_id: str) -> None:
    with database.write() as tx:
        assert retries._step(tx, job_id, _CODES, 0) == 1
    cancel(database, job_id)
    with pytest.raises(WrongStateError), database.write() as tx:
        retries._step(tx, job_id, _CODES, 4)
    assert [row[1:] for row in _finished(database, job_id, 10)] == [(0, "cancelled")]
    assert_job_is_sound(database, job_id)


# --- at the same time -----------------------------------------------------------------------------------------


def test_several_retries_at_once_take_each_result_back_once(
    database: Database, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_STEP_REQUESTS", 2)
    done = all_at_once([partial(retry, database, job_id) for _ in range(4)])
    assert sum(one.num_retried for one in done) == 3
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_a_retry_comes_before_a_deletion_or_after_it(
    database: Database, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete() -> type[Exception] | None:
        try:
            with database.write() as tx:
                transitions.delete_job(tx, job_id)
        except WrongStateError as error:
            return type(error)
        return None

    pause = Pause(monkeypatch, "retry_job")
    assert overlap(database, pause, partial(retry, database, job_id), delete) is WrongStateError
    finish_all(database)
    assert delete() is None
    with pytest.raises(NotFoundError):
        retry(database, job_id)


def test_workers_write_elsewhere_while_a_step_is_open(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = postgres_database
    register(database)
    broken = submit(database, "broken")
    for _ in range(2):
        _record_with(database, claim(database), [_failed(0)])
    pause = Pause(monkeypatch, "retry_job")
    retrying = Call(partial(retry, database, broken))
    try:
        pause.wait_reached()
        submit(database, "other")
        finish_all(database)
        assert_job_is_sound(database, "other")
    finally:
        pause.end()
    assert retrying.result().num_retried == 1
    finish_all(database)
    assert_job_is_sound(database, broken)


def test_who_held_the_chunk_before_writes_nothing_after_a_retry(database: Database) -> None:
    register(database)
    made = submit(database, num_requests=2)
    frozen = claim(database)
    recovery.worker_died(database, "w1", 9)
    _record_with(database, claim(database), [_failed(0)])
    retry(database, made)
    for batch in ([success(0)], []):
        with pytest.raises(LeaseLostError):
            record(database, frozen, batch, is_last=False, is_repeat=True)
    assert [chunk["state"] for chunk in chunk_rows(database, made)] == [ChunkState.QUEUED]
    finish_all(database)
    assert_job_is_sound(database, made)
