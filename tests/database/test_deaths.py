"""A chunk whose workers die is split, its parts run alone, and in the end one request is found guilty."""

import itertools
from collections.abc import Callable, Collection
from typing import Any

import pytest
from database.rows import (
    CARD,
    LEASE_S,
    cancel,
    chunk_row,
    chunk_rows,
    claim,
    expire,
    failure,
    finish_all,
    job_row,
    record,
    register,
    result_rows,
    set_columns,
    submit,
    success,
    successes,
    worker_state,
)
from soundness import assert_job_is_sound

from db import leases, recovery
from db.database import Database
from db.errors import LeaseLostError
from db.recovery import Recovery
from db.states import ChunkState, JobState
from db.tables import chunks, workers
from db.transitions import Lease

_MAX_ATTEMPTS = 2
_NOTHING = Recovery()

Bury = Callable[[Database, Lease], Recovery]


def _sweep(database: Database, *, spare_leases: bool = False) -> Recovery:
    return recovery.run_once(database, LEASE_S, _MAX_ATTEMPTS, spare_leases=spare_leases)


def _after_its_lease(database: Database, lease: Lease) -> Recovery:
    expire(database, lease)
    return _sweep(database)


def _at_once(database: Database, lease: Lease) -> Recovery:
    worker_id = str(chunk_row(database, lease)["worker_id"])
    return recovery.worker_died(database, worker_id, _MAX_ATTEMPTS)


def _wear_out(database: Database, lease: Lease) -> Recovery:
    """Its worker dies for the last time that a chunk may."""
    set_columns(database, chunks, chunks.c.id == lease.chunk_id, attempt=_MAX_ATTEMPTS)
    return _after_its_lease(database, lease)


def _claim_alone(database: Database) -> Lease:
    lease = claim(database)
    assert lease.is_suspect
    leases.isolate(database, lease)
    return lease


# --- split ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_requests", "done", "pending"),
    [
        (512, [], [64] * 8),
        (17, [], [3, 3, 3, 3, 3, 2]),
        (16, range(0, 16, 2), [1] * 8),
        (9, [], [2, 2, 2, 2, 1]),
        (8, [], [1] * 8),
        # what is done already lies before, between or behind what is not
        (20, range(15), [1] * 5),
        (20, range(5, 20), [1] * 5),
        (20, [0, 1, 9, 18, 19], [2] * 7 + [1]),
        (3, [0, 2], [1]),
        (1, [], [1]),
    ],
)
def test_the_parts_of_a_chunk_cover_it_and_share_what_is_pending(
    database: Database, num_requests: int, done: Collection[int], pending: list[int]
) -> None:
    register(database)
    job_id = submit(database, num_requests=num_requests + 5, chunk_size=num_requests)
    lease = claim(database)
    batch = [failure(index) if index % 3 == 0 else success(index) for index in done]
    record(database, lease, batch, is_last=False)
    before = result_rows(database, job_id)
    assert _wear_out(database, lease) == Recovery(num_split=1)
    parts = [row for row in chunk_rows(database, job_id) if row["first_index"] < num_requests]
    ends = [row["first_index"] + row["num_requests"] for row in parts]
    assert [row["first_index"] for row in parts] == [0, *ends[:-1]]
    assert ends[-1] == num_requests
    assert [row["num_requests"] - row["num_succeeded"] - row["num_failed"] for row in parts] == pending
    for row in parts:
        indexes = range(row["first_index"], row["first_index"] + row["num_requests"])
        num_failed = sum(index in done and index % 3 == 0 for index in indexes)
        num_succeeded = sum(index in done for index in indexes) - num_failed
        assert (row["num_succeeded"], row["num_failed"]) == (num_succeeded, num_failed)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (3 * num_succeeded, 5 * num_succeeded)
        assert (row["state"], row["is_suspect"], row["is_alone"]) == (ChunkState.QUEUED, True, False)
        assert (row["attempt"], row["lease_id"], row["finished_at"]) == (_MAX_ATTEMPTS, None, None)
    assert parts[0]["id"] == lease.chunk_id
    assert result_rows(database, job_id) == before
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_a_part_is_split_within_its_own_range(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=64, chunk_size=32, bad=[7])
    _wear_out(database, claim(database))
    part = _claim_alone(database)
    assert (part.first_index, part.num_requests) == (0, 4)
    assert _after_its_lease(database, part) == Recovery(num_split=1)
    firsts = [row["first_index"] for row in chunk_rows(database, job_id)]
    assert firsts == [0, 1, 2, 3, 4, 9, 13, 17, 21, 25, 29, 32]
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_a_chunk_is_split_after_its_last_attempt_and_not_before(database: Database) -> None:
    register(database)
    submit(database, num_requests=4, chunk_size=4)
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        lease = claim(database)
        assert (lease.attempt, lease.is_suspect) == (attempt, False)
        is_last = attempt == _MAX_ATTEMPTS
        assert _after_its_lease(database, lease) == (
            Recovery(num_split=1) if is_last else Recovery(num_requeued=1)
        )


def test_a_worker_that_gives_a_chunk_back_never_wears_it_out(database: Database) -> None:
    register(database)
    submit(database, num_requests=4, chunk_size=4)
    for _ in range(2 * _MAX_ATTEMPTS):
        leases.release(database, claim(database))
    assert _after_its_lease(database, claim(database)) == Recovery(num_requeued=1)


@pytest.mark.parametrize("is_alone", [False, True])
def test_a_worn_chunk_that_lacks_only_its_end_is_done_and_not_split(
    database: Database, *, is_alone: bool
) -> None:
    register(database)
    job_id = submit(database, num_requests=2)
    if is_alone:
        record(database, first := claim(database), [success(1)], is_last=False)
        _wear_out(database, first)
    lease = _claim_alone(database) if is_alone else claim(database)
    batch = [result for result in successes(lease) if not is_alone or result.index != 1]
    record(database, lease, batch, is_last=False)
    assert _wear_out(database, lease) == Recovery(num_requeued=1)
    assert len(chunk_rows(database, job_id)) == 1
    assert {outcome.status for outcome in assert_job_is_sound(database, job_id)} == {"succeeded"}


# --- alone ----------------------------------------------------------------------------------------------------


def test_a_suspect_that_only_waited_when_its_worker_died_is_not_split(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=16, chunk_size=16)
    _wear_out(database, claim(database))
    for attempt in range(_MAX_ATTEMPTS + 1, _MAX_ATTEMPTS + 5):
        # the oldest suspect again and again: claimed, but never alone
        lease = claim(database)
        assert (lease.first_index, lease.attempt) == (0, attempt)
        assert _after_its_lease(database, lease) == Recovery(num_requeued=1)
    assert len(chunk_rows(database, job_id)) == 8
    assert result_rows(database, job_id) == []
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_of_two_suspects_of_a_worker_that_died_only_the_one_that_ran_alone_is_split(
    database: Database,
) -> None:
    register(database)
    job_id = submit(database, num_requests=16, chunk_size=16)
    _wear_out(database, claim(database))
    alone, waiting = _claim_alone(database), claim(database)
    expire(database, alone, waiting)
    assert _sweep(database) == Recovery(num_split=1, num_requeued=1)
    assert [row["num_requests"] for row in chunk_rows(database, job_id)] == [1, 1, *[2] * 7]


def test_a_suspect_that_is_given_back_is_not_alone_any_more(database: Database) -> None:
    register(database)
    submit(database, num_requests=16, chunk_size=16)
    _wear_out(database, claim(database))
    alone = _claim_alone(database)
    leases.release(database, alone)
    again = claim(database)
    assert (again.chunk_id, again.is_suspect, again.is_alone) == (alone.chunk_id, True, False)
    assert _after_its_lease(database, again) == Recovery(num_requeued=1)


def test_only_the_holder_of_a_suspect_isolates_it(database: Database) -> None:
    register(database)
    submit(database, num_requests=2)
    innocent = claim(database)
    with pytest.raises(LeaseLostError):
        leases.isolate(database, innocent)
    _wear_out(database, innocent)
    zombie = claim(database)
    _after_its_lease(database, zombie)
    with pytest.raises(LeaseLostError):
        leases.isolate(database, zombie)
    holder = _claim_alone(database)
    assert holder.chunk_id == zombie.chunk_id
    with pytest.raises(LeaseLostError):
        leases.isolate(database, zombie)
    leases.isolate(database, holder)
    assert chunk_row(database, holder)["is_alone"]


def test_a_suspect_that_became_alone_after_the_sweeper_listed_it_is_judged_as_that(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    submit(database, num_requests=16, chunk_size=16)
    _wear_out(database, claim(database))
    suspect = claim(database)
    expire(database, suspect)
    put_back = recovery._put_back

    def isolate_first(*arguments: Any) -> Any:
        leases.isolate(database, suspect)
        return put_back(*arguments)

    monkeypatch.setattr(recovery, "_put_back", isolate_first)
    assert _sweep(database) == Recovery(num_split=1)


def test_a_suspect_that_dies_alone_in_a_cancelling_job_is_cancelled(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=1)
    _wear_out(database, claim(database))
    alone = _claim_alone(database)
    cancel(database, job_id)
    assert _after_its_lease(database, alone) == Recovery(num_requeued=1)
    assert job_row(database, job_id)["state"] == JobState.CANCELLED
    assert [outcome.status for outcome in assert_job_is_sound(database, job_id)] == ["cancelled"]


# --- down to the guilty request -------------------------------------------------------------------------------


def _work_off(database: Database, guilty: Collection[int], bury: Bury) -> int:
    """Work as workers do whose engine dies of the guilty requests; the number of deaths."""
    for num_deaths in itertools.count():
        worker_id = register(database, f"worker_{num_deaths}")
        while (lease := leases.claim(database, worker_id, CARD, LEASE_S)) is not None:
            if lease.is_suspect:
                leases.isolate(database, lease)
            pending = [request.index for request in leases.load_requests(database, lease)]
            if not set(guilty).isdisjoint(pending):
                break
            record(database, lease, [success(index) for index in pending], is_last=True)
        if lease is None:
            return num_deaths
        assert bury(database, lease).did_anything
    raise AssertionError("unreachable")


@pytest.mark.parametrize("bury", [_after_its_lease, _at_once])
@pytest.mark.parametrize(
    ("num_requests", "guilty", "num_rounds"),
    [
        (1, 0, 1),
        (8, 7, 1),
        (9, 0, 2),
        (64, 31, 2),
        (512, 0, 3),
        (512, 300, 3),
        (512, 511, 3),
    ],
)
def test_the_guilty_request_is_found_and_its_neighbours_succeed(
    database: Database, bury: Bury, num_requests: int, guilty: int, num_rounds: int
) -> None:
    """Each round costs a death and leaves an eighth, rounded up; the first deaths are the chunk's attempts."""
    job_id = submit(database, num_requests=num_requests + 3, chunk_size=num_requests)
    assert _work_off(database, [guilty], bury) == _MAX_ATTEMPTS + num_rounds
    assert job_row(database, job_id)["state"] == JobState.COMPLETED
    outcomes = assert_job_is_sound(database, job_id)
    assert {outcome.index: outcome.error_code for outcome in outcomes if outcome.status != "succeeded"} == {
        guilty: "engine_crash"
    }
    firsts = [row["first_index"] for row in chunk_rows(database, job_id)]
    assert len(firsts) == len(set(firsts))


def test_two_guilty_requests_of_a_chunk_are_both_found(database: Database) -> None:
    job_id = submit(database, num_requests=512, chunk_size=512)
    # in different eighths from the first split on: each costs rounds of its own
    assert _work_off(database, [3, 500], _at_once) == _MAX_ATTEMPTS + 2 * 3
    outcomes = assert_job_is_sound(database, job_id)
    assert [outcome.index for outcome in outcomes if outcome.error_code == "engine_crash"] == [3, 500]
    assert sum(outcome.status == "succeeded" for outcome in outcomes) == 510


# --- a worker that is known to be dead ------------------------------------------------------------------------


def test_of_a_worker_that_died_all_chunks_are_taken_back_and_of_others_none(database: Database) -> None:
    register(database, "dead")
    register(database, "alive")
    job_id = submit(database, num_requests=8)
    first, other, second = (claim(database, worker_id) for worker_id in ("dead", "alive", "dead"))
    before = chunk_row(database, other)
    # at once: their leases are not over
    assert recovery.worker_died(database, "dead", _MAX_ATTEMPTS) == Recovery(num_requeued=2)
    for lease in (first, second):
        row = chunk_row(database, lease)
        assert (row["state"], row["attempt"], row["lease_id"]) == (ChunkState.QUEUED, 1, None)
    assert chunk_row(database, other) == before
    assert (worker_state(database, "dead"), worker_state(database, "alive")) == ("stopped", "starting")
    assert recovery.worker_died(database, "dead", _MAX_ATTEMPTS) == _NOTHING
    with pytest.raises(LeaseLostError):
        record(database, first, successes(first), is_last=True)
    record(database, other, successes(other), is_last=True)
    finish_all(database, "alive")
    assert_job_is_sound(database, job_id)


@pytest.mark.parametrize("state", ["starting", "ready", "draining", "gone", "stopped"])
def test_a_worker_that_died_is_stopped_whatever_it_was(database: Database, state: str) -> None:
    register(database)
    set_columns(database, workers, workers.c.id == "w1", state=state)
    assert recovery.worker_died(database, "w1", _MAX_ATTEMPTS) == _NOTHING
    assert worker_state(database, "w1") == "stopped"


def test_a_worker_that_died_before_it_was_registered_is_no_error(database: Database) -> None:
    assert recovery.worker_died(database, "w_missing", _MAX_ATTEMPTS) == _NOTHING


def test_the_last_chunk_of_a_cancelling_job_ends_it_when_its_worker_dies(database: Database) -> None:
    register(database)
    job_id = submit(database)
    claim(database)
    cancel(database, job_id)
    assert recovery.worker_died(database, "w1", _MAX_ATTEMPTS) == Recovery(num_requeued=1)
    assert job_row(database, job_id)["state"] == JobState.CANCELLED
    assert_job_is_sound(database, job_id)


# --- after the database was away ------------------------------------------------------------------------------


def test_spared_leases_stay_while_everything_else_is_mended(database: Database) -> None:
    register(database)
    job_id = submit(database)
    lease = claim(database)
    expire(database, lease)
    set_columns(database, workers, workers.c.id == "w1", heartbeat_at=0.0)
    before = chunk_row(database, lease)
    assert _sweep(database, spare_leases=True) == Recovery(num_workers_lost=1)
    assert chunk_row(database, lease) == before
    record(database, lease, successes(lease), is_last=True)
    second = claim(database)
    expire(database, second)
    assert _sweep(database) == Recovery(num_requeued=1)
    finish_all(database)
    assert_job_is_sound(database, job_id)
