"""What a fault leaves behind is mended, once: expired leases, silent workers, submits that died."""

from functools import partial
from typing import Any

import pytest
from database.rows import (
    CARD,
    LEASE_S,
    Call,
    all_at_once,
    cancel,
    chunk_row,
    chunk_rows,
    chunk_states,
    claim,
    commit,
    expire,
    expire_submit,
    failure,
    finish,
    finish_all,
    job_row,
    line,
    num_rows,
    record,
    register,
    result_rows,
    set_columns,
    silence,
    stage,
    submit,
    success,
    successes,
    wait_blocked,
    worker_state,
)
from soundness import assert_job_is_sound
from sqlalchemy import delete, select

from db import leases, queries, recovery, submits, transitions
from db.database import Database
from db.errors import LeaseLostError, NotFoundError, WrongStateError
from db.recovery import Recovery
from db.states import ChunkState, JobState
from db.submits import NewChunk
from db.tables import chunks, jobs, now_s, workers
from db.transitions import NewJob

_MAX_ATTEMPTS = 3
_NOTHING = Recovery()


def _sweep(database: Database) -> Recovery:
    return recovery.run_once(database, LEASE_S, _MAX_ATTEMPTS)


def test_where_all_is_well_nothing_is_done(database: Database) -> None:
    register(database)
    submit(database)
    lease = claim(database)
    stage(database, "staged")
    before = chunk_row(database, lease)
    recovered = _sweep(database)
    assert recovered == _NOTHING
    assert not recovered.did_anything
    assert chunk_row(database, lease) == before
    assert num_rows(database, "staged") > 0
    assert worker_state(database, "w1") == "starting"


# --- leases ---------------------------------------------------------------------------------------------------


def test_a_lease_that_is_over_is_requeued_and_its_attempt_counts(database: Database) -> None:
    register(database)
    job_id = submit(database)
    over, held = claim(database), claim(database)
    expire(database, over)
    recovered = _sweep(database)
    assert recovered == Recovery(num_requeued=1)
    assert recovered.did_anything
    row = chunk_row(database, over)
    assert (row["state"], row["attempt"], row["lease_id"]) == (ChunkState.QUEUED, 1, None)
    assert chunk_row(database, held)["lease_id"] == held.lease_id
    again = claim(database)
    assert (again.chunk_id, again.attempt) == (over.chunk_id, 2)
    finish(database, again)
    finish(database, held)
    assert_job_is_sound(database, job_id)


def test_a_chunk_whose_workers_all_died_is_split_until_the_guilty_request_fails(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=6, chunk_size=4, bad=[1])
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        lease = claim(database)
        assert (lease.first_index, lease.attempt) == (0, attempt)
        if attempt == 1:
            record(database, lease, [success(0), failure(2)], is_last=False)
        expire(database, lease)
        is_last = attempt == _MAX_ATTEMPTS
        assert _sweep(database) == (Recovery(num_split=1) if is_last else Recovery(num_requeued=1))
    # one pending request was left, so the one part is the chunk itself
    assert chunk_states(database, job_id) == [ChunkState.QUEUED, ChunkState.QUEUED]
    suspect = claim(database)
    assert (suspect.first_index, suspect.num_requests, suspect.is_suspect) == (0, 4, True)
    leases.isolate(database, suspect)
    expire(database, suspect)
    assert _sweep(database) == Recovery(num_given_up=1)
    assert chunk_states(database, job_id) == [ChunkState.DONE, ChunkState.QUEUED]
    assert job_row(database, job_id)["state"] == JobState.IN_PROGRESS
    finish_all(database)
    assert job_row(database, job_id)["state"] == JobState.COMPLETED
    outcomes = assert_job_is_sound(database, job_id)
    assert [outcome.error_code for outcome in outcomes] == [
        None,
        "invalid_json",
        "engine_error",
        "engine_crash",
        None,
        None,
    ]
    assert "ran alone (attempt 4)" in str(outcomes[3].error_message)
    assert result_rows(database, job_id)[3]["attempt"] == 4


def test_the_last_chunk_that_is_given_up_ends_the_job(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=1)
    for done in (Recovery(num_split=1), Recovery(num_given_up=1)):
        lease = claim(database)
        if lease.is_suspect:
            leases.isolate(database, lease)
        expire(database, lease)
        assert recovery.run_once(database, LEASE_S, max_attempts=1) == done
    assert job_row(database, job_id)["state"] == JobState.COMPLETED
    assert_job_is_sound(database, job_id)


def test_a_chunk_that_wrote_everything_but_its_end_is_done_when_given_up(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=2)
    lease = claim(database)
    record(database, lease, successes(lease), is_last=False)
    expire(database, lease)
    recovery.run_once(database, LEASE_S, max_attempts=1)
    outcomes = assert_job_is_sound(database, job_id)
    assert [outcome.status for outcome in outcomes] == ["succeeded", "succeeded"]


def test_a_lease_that_is_over_in_a_cancelling_job_ends_as_cancelled_and_ends_the_job(
    database: Database,
) -> None:
    register(database)
    job_id = submit(database)
    lease = claim(database)
    record(database, lease, [success(0)], is_last=False)
    cancel(database, job_id)
    expire(database, lease)
    assert _sweep(database).did_anything
    assert chunk_states(database, job_id) == [ChunkState.QUEUED, ChunkState.QUEUED]
    assert job_row(database, job_id)["state"] == JobState.CANCELLED
    outcomes = assert_job_is_sound(database, job_id)
    assert [outcome.status for outcome in outcomes] == ["succeeded", "cancelled", "cancelled", "cancelled"]


def test_a_lease_that_is_renewed_in_time_is_left_alone(database: Database) -> None:
    register(database)
    submit(database)
    lease = claim(database)
    expire(database, lease)
    leases.renew(database, "w1", [lease], LEASE_S)
    assert _sweep(database) == _NOTHING
    assert chunk_row(database, lease)["lease_id"] == lease.lease_id


@pytest.mark.parametrize("fate", ["requeue", "split", "cancel"])
def test_a_lease_that_is_renewed_at_the_last_moment_is_left_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    """The sweeper has listed it as over; before it acts, the worker speaks up."""
    register(database)
    job_id = submit(database)
    lease = claim(database)
    if fate == "cancel":
        cancel(database, job_id)
    expire(database, lease)
    put_back = recovery._put_back

    def renew_first(*arguments: Any) -> Any:
        leases.renew(database, "w1", [lease], LEASE_S)
        return put_back(*arguments)

    monkeypatch.setattr(recovery, "_put_back", renew_first)
    assert recovery.run_once(database, LEASE_S, 1 if fate == "split" else _MAX_ATTEMPTS) == _NOTHING
    assert chunk_row(database, lease)["lease_id"] == lease.lease_id
    assert result_rows(database, job_id) == []
    finish(database, lease)
    finish_all(database)
    assert_job_is_sound(database, job_id)


# --- workers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["starting", "ready", "draining"])
def test_a_worker_that_is_silent_for_three_leases_is_gone_until_it_speaks(
    database: Database, state: str
) -> None:
    for worker_id, num_leases in (("silent", 3.5), ("slow", 2.5)):
        register(database, worker_id)
        set_columns(database, workers, workers.c.id == worker_id, state=state)
        silence(database, worker_id, num_leases * LEASE_S)
    assert _sweep(database) == Recovery(num_workers_lost=1)
    assert (worker_state(database, "silent"), worker_state(database, "slow")) == ("gone", state)
    assert [worker.id for worker in queries.list_workers(database)] == ["slow"]
    assert _sweep(database) == _NOTHING
    leases.renew(database, "silent", [], LEASE_S)
    assert worker_state(database, "silent") == "ready"
    assert _sweep(database) == _NOTHING


def test_a_worker_that_stopped_is_never_gone(database: Database) -> None:
    register(database)
    set_columns(database, workers, workers.c.id == "w1", state="stopped")
    silence(database, "w1", 100 * LEASE_S)
    assert _sweep(database) == _NOTHING


# --- submits --------------------------------------------------------------------------------------------------


def test_a_submit_that_died_is_cleared_away_with_all_its_rows(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_ERASE_ROWS", 3)
    stage(database, "dead", num_requests=10, bad=[1, 7])
    stage(database, "live", num_requests=2)
    submit(database, "whole", num_requests=2)
    others = num_rows(database, "live"), num_rows(database, "whole")
    expire_submit(database, "dead")
    assert _sweep(database) == Recovery(num_jobs_erased=1)
    assert num_rows(database, "dead") == 0
    assert (num_rows(database, "live"), num_rows(database, "whole")) == others
    assert _sweep(database) == _NOTHING


def test_a_submit_that_added_nothing_yet_is_cleared_away_too(database: Database) -> None:
    with database.write() as tx:
        transitions.stage_job(tx, NewJob("dead", CARD, "c" * 64, "", "input.jsonl"), -1.0)
    assert _sweep(database) == Recovery(num_jobs_erased=1)
    assert num_rows(database, "dead") == 0


def test_a_submit_that_slept_past_its_lease_can_neither_add_nor_commit(database: Database) -> None:
    stage(database, "zombie")
    before = num_rows(database, "zombie")
    expire_submit(database, "zombie")
    with pytest.raises(LeaseLostError, match="submit again"):
        submits.add(database, "zombie", [line(4), line(5)], [NewChunk(4, 2, 0)])
    with pytest.raises(LeaseLostError):
        commit(database, "zombie")
    assert num_rows(database, "zombie") == before
    assert job_row(database, "zombie")["state"] == JobState.VALIDATING
    _sweep(database)
    with pytest.raises(LeaseLostError, match="submit again"):
        submits.add(database, "zombie", [line(4), line(5)], [NewChunk(4, 2, 0)])
    with pytest.raises(NotFoundError):
        commit(database, "zombie")
    assert num_rows(database, "zombie") == 0


def test_a_submit_that_adds_keeps_its_lease(database: Database) -> None:
    stage(database, "live")
    set_columns(database, jobs, jobs.c.id == "live", submit_lease_until=now_s() + 1)
    submits.add(database, "live", [line(4)], [NewChunk(4, 1, 0)])
    with database.read() as tx:
        now = tx.execute(select(now_s())).scalar_one()
    until = job_row(database, "live")["submit_lease_until"]
    assert until == pytest.approx(now + submits.SUBMIT_LEASE_S, abs=60)


def test_a_submit_that_is_being_cleared_away_can_do_nothing_more(database: Database) -> None:
    """Deleting takes several transactions: a submit that lives on must not slip in between two of them."""
    stage(database, "staged")
    with database.write() as tx:
        transitions.abandon_job(tx, "staged")
    with pytest.raises(LeaseLostError):
        submits.add(database, "staged", [line(4)], [NewChunk(4, 1, 0)])
    with pytest.raises(WrongStateError) as caught:
        commit(database, "staged")
    assert caught.value.current == JobState.DELETING
    # nor is it deleted by its own hand: whoever began goes on, or the next sweeper does
    assert not recovery.discard_staged_job(database, "staged")
    assert _sweep(database) == Recovery(num_jobs_erased=1)
    assert num_rows(database, "staged") == 0


def test_discarding_twice_or_what_is_missing_is_harmless(database: Database) -> None:
    stage(database, "staged")
    assert recovery.discard_staged_job(database, "staged")
    assert not recovery.discard_staged_job(database, "staged")
    assert num_rows(database, "staged") == 0


@pytest.mark.parametrize("state", ["queued", "in_progress", "cancelling", "completed"])
def test_a_job_that_is_visible_is_never_discarded(database: Database, state: str) -> None:
    """As after a commit whose answer was lost: its submit sees an error and cleans up, but the job stands."""
    register(database)
    job_id = submit(database, bad=[0])
    if state in ("in_progress", "cancelling"):
        claim(database)
    if state == "cancelling":
        cancel(database, job_id)
    if state == "completed":
        finish_all(database)
    before = job_row(database, job_id), num_rows(database, job_id), result_rows(database, job_id)
    assert not recovery.discard_staged_job(database, job_id)
    assert (job_row(database, job_id), num_rows(database, job_id), result_rows(database, job_id)) == before


# --- jobs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["queued", "in_progress", "cancelling"])
def test_a_job_whose_chunks_are_all_closed_is_closed(database: Database, state: JobState) -> None:
    register(database)
    closed, others = submit(database, "closed", bad=range(4)), [submit(database, "open"), "empty"]
    stage(database, "empty")
    with database.write() as tx:
        tx.execute(delete(chunks).where(chunks.c.job_id == "empty"))
    # as only a bug could leave it
    set_columns(database, jobs, jobs.c.id == closed, state=state, finished_at=None)
    before = [job_row(database, other) for other in others]
    assert _sweep(database) == Recovery(num_jobs_closed=1)
    over = JobState.CANCELLED if state == "cancelling" else JobState.COMPLETED
    assert job_row(database, closed)["state"] == over
    # one has work left, and the other is still being written
    assert [job_row(database, other) for other in others] == before
    assert _sweep(database) == _NOTHING
    assert_job_is_sound(database, closed)


# --- several sweepers -----------------------------------------------------------------------------------------


def test_sweepers_at_the_same_time_do_each_thing_once(database: Database) -> None:
    for worker_id in ("w1", "silent_1", "silent_2"):
        register(database, worker_id)
    silence(database, "silent_1", 10 * LEASE_S)
    silence(database, "silent_2", 10 * LEASE_S)
    job_id = submit(database, num_requests=12)
    worn, *over = (claim(database) for _ in range(4))
    expire(database, worn, *over)
    set_columns(database, chunks, chunks.c.id == worn.chunk_id, attempt=_MAX_ATTEMPTS)
    for submit_id in ("dead_1", "dead_2"):
        stage(database, submit_id, num_requests=20)
        expire_submit(database, submit_id)
    rounds = all_at_once([partial(_sweep, database)] * 4)
    assert sum(done.num_requeued for done in rounds) == 3
    assert sum(done.num_split for done in rounds) == 1
    assert sum(done.num_workers_lost for done in rounds) == 2
    assert sum(done.num_jobs_erased for done in rounds) == 2
    assert [chunk_row(database, lease)["attempt"] for lease in over] == [1, 1, 1]
    assert num_rows(database, "dead_1") == num_rows(database, "dead_2") == 0
    # the worn chunk of two became two suspects
    assert [row["num_requests"] for row in chunk_rows(database, job_id)] == [1, 1, 2, 2, 2, 2, 2]
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_two_sweepers_that_clear_the_same_submit_leave_no_row(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that waits finds its first rows deleted by the other; that must not look like the end of them."""
    monkeypatch.setattr(recovery, "_ERASE_ROWS", 2)
    stage(postgres_database, "dead", num_requests=6)
    expire_submit(postgres_database, "dead")
    with postgres_database.write() as tx:
        # what the other one does first, and then it is killed
        transitions.erase_rows(tx, "dead", 2)
        swept = Call(partial(_sweep, postgres_database))
        wait_blocked(postgres_database)
    assert swept.result() == Recovery(num_jobs_erased=1)
    assert num_rows(postgres_database, "dead") == 0
