"""A chunk has one holder at a time: who gets it, what the holder may write, and what a holder of old may not."""

from dataclasses import replace

import pytest
from database.rows import (
    CARD,
    LEASE_S,
    cancel,
    chunk_row,
    chunk_states,
    claim,
    expire,
    failure,
    finish,
    finish_all,
    job_row,
    positions,
    record,
    register,
    result_rows,
    set_columns,
    stage,
    submit,
    success,
    successes,
)
from soundness import assert_job_is_sound
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from db import leases, queries, recovery
from db.database import Database
from db.errors import LeaseLostError
from db.leases import Record, Renewal
from db.states import ChunkState, JobState
from db.tables import jobs, now_s, workers
from db.transitions import Lease

# --- claim ----------------------------------------------------------------------------------------------------


def test_nothing_is_claimed_when_there_is_nothing(database: Database) -> None:
    register(database)
    assert leases.claim(database, "w1", CARD, LEASE_S) is None


def test_a_claim_is_found_by_its_lease_while_that_lives(database: Database) -> None:
    register(database)
    job_id = submit(database, priority=7)
    mine, other = leases.new_lease_id(), leases.new_lease_id()
    lease = leases.claim(database, "w1", CARD, LEASE_S, job_id, mine)
    assert lease is not None
    assert (lease.lease_id, lease.priority) == (mine, 7)
    assert leases.find(database, mine) == lease
    assert leases.find(database, other) is None
    leases.release(database, lease)
    assert leases.find(database, mine) is None


def test_the_first_claim_starts_the_job(database: Database) -> None:
    register(database)
    job_id = submit(database)
    assert (job_row(database, job_id)["state"], job_row(database, job_id)["started_at"]) == ("queued", None)
    lease = claim(database)
    assert (lease.job_id, lease.first_index, lease.num_requests, lease.attempt) == (job_id, 0, 2, 1)
    started_at = job_row(database, job_id)["started_at"]
    assert job_row(database, job_id)["state"] == JobState.IN_PROGRESS
    claim(database)
    assert job_row(database, job_id)["started_at"] == started_at
    finish_all(database)


def test_chunks_of_a_job_are_claimed_in_input_order(database: Database) -> None:
    register(database)
    submit(database, num_requests=6)
    assert [claim(database).first_index for _ in range(3)] == [0, 2, 4]
    assert leases.claim(database, "w1", CARD, LEASE_S) is None


def test_the_highest_priority_is_claimed_first(database: Database) -> None:
    register(database)
    for job_id, priority in (("low", -1), ("high", 5), ("middle", 0)):
        submit(database, job_id, num_requests=2, priority=priority)
    assert [claim(database).job_id for _ in range(3)] == ["high", "middle", "low"]


def test_among_equals_the_job_with_the_fewest_chunks_running_is_claimed_first(database: Database) -> None:
    register(database)
    submit(database, "big", num_requests=8)
    assert [claim(database).job_id for _ in range(2)] == ["big", "big"]
    submit(database, "small", num_requests=6)
    assert [claim(database).job_id for _ in range(3)] == ["small", "small", "big"]


def test_among_equals_with_as_many_running_the_oldest_is_claimed_first(database: Database) -> None:
    register(database)
    for age_s, job_id in ((10, "young"), (30, "oldest"), (20, "old")):
        submit(database, job_id, num_requests=2)
        set_columns(database, jobs, jobs.c.id == job_id, created_at=now_s() - age_s)
    assert [claim(database).job_id for _ in range(3)] == ["oldest", "old", "young"]


def test_only_jobs_of_the_worker_s_card_are_claimed(database: Database) -> None:
    register(database)
    submit(database, "other", card_name="huge", priority=9)
    submit(database, "mine", num_requests=2)
    assert claim(database).job_id == "mine"
    assert leases.claim(database, "w1", CARD, LEASE_S) is None


def test_a_worker_of_one_job_claims_no_other(database: Database) -> None:
    register(database)
    submit(database, "urgent", priority=9)
    submit(database, "mine", num_requests=2)
    assert claim(database, job_id="mine").job_id == "mine"
    assert leases.claim(database, "w1", CARD, LEASE_S, "mine") is None
    assert leases.claim(database, "w1", CARD, LEASE_S, "missing") is None


def test_a_job_that_is_staged_cancelling_or_over_is_not_claimed(database: Database) -> None:
    register(database)
    stage(database, "staged")
    submit(database, "cancelling")
    claim(database)
    cancel(database, "cancelling")
    submit(database, "over")
    cancel(database, "over")
    assert leases.claim(database, "w1", CARD, LEASE_S) is None


# --- record ---------------------------------------------------------------------------------------------------


def test_results_in_parts_close_the_chunk_and_the_job_with_the_last(database: Database) -> None:
    register(database)
    job_id = submit(database)
    first, second = claim(database), claim(database)
    record(database, first, [success(1)], is_last=False)
    row = chunk_row(database, first)
    assert (row["state"], row["num_succeeded"], row["num_failed"]) == (ChunkState.RUNNING, 1, 0)
    record(database, first, [failure(0)], is_last=True)
    row = chunk_row(database, first)
    assert (row["state"], row["num_succeeded"], row["num_failed"]) == (ChunkState.DONE, 1, 1)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (3, 5)
    assert job_row(database, job_id)["state"] == JobState.IN_PROGRESS
    record(database, second, successes(second), is_last=True)
    assert job_row(database, job_id)["state"] == JobState.COMPLETED
    outcomes = assert_job_is_sound(database, job_id)
    assert [outcome.status for outcome in outcomes] == ["failed", "succeeded", "succeeded", "succeeded"]
    assert outcomes[0].error_code == "engine_error"
    assert (outcomes[1].finish_reason, outcomes[1].completion_tokens) == ("stop", 5)


def test_results_have_positions_in_the_order_in_which_they_were_written(database: Database) -> None:
    register(database)
    submit(database, "one", num_requests=6)
    submit(database, "two", num_requests=2)
    first, second, third = (claim(database, job_id="one") for _ in range(3))
    other = claim(database, job_id="two")
    leases.record(
        database,
        [
            Record(second, [success(3)], is_last=False),
            Record(other, [failure(1), success(0)], is_last=True),
            Record(first, [success(1), failure(0)], is_last=True),
        ],
    )
    assert positions(database, "one") == {3: 1, 1: 2, 0: 3}
    assert positions(database, "two") == {1: 1, 0: 2}
    record(database, third, successes(third), is_last=True)
    record(database, second, [success(3), success(2)], is_last=True, is_repeat=True)
    assert positions(database, "one") == {3: 1, 1: 2, 0: 3, 4: 4, 5: 5, 2: 6}
    for job_id in ("one", "two"):
        assert_job_is_sound(database, job_id)


def test_a_write_that_fails_leaves_no_gap_between_positions(database: Database) -> None:
    register(database)
    submit(database)
    lease = claim(database)
    record(database, lease, [success(0)], is_last=False)
    with pytest.raises(IntegrityError):
        record(database, lease, [success(1), success(0)], is_last=False)
    record(database, lease, [success(1)], is_last=True)
    assert positions(database, "job_a") == {0: 1, 1: 2}


def test_a_chunk_may_end_with_a_batch_that_is_empty(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=2)
    lease = claim(database)
    record(database, lease, [], is_last=False)
    record(database, lease, successes(lease), is_last=False)
    record(database, lease, [], is_last=True)
    assert_job_is_sound(database, job_id)


def test_a_batch_that_comes_twice_counts_once(database: Database) -> None:
    register(database)
    job_id = submit(database)
    lease = claim(database)
    for is_repeat in (False, True):
        record(database, lease, [success(0)], is_last=False, is_repeat=is_repeat)
    # what is there already stays as it is
    record(database, lease, [failure(0)], is_last=False, is_repeat=True)
    row = chunk_row(database, lease)
    assert (row["num_succeeded"], row["num_failed"], row["completion_tokens"]) == (1, 0, 5)
    record(database, lease, successes(lease), is_last=True, is_repeat=True)
    finish_all(database)
    outcomes = assert_job_is_sound(database, job_id)
    assert {outcome.status for outcome in outcomes} == {"succeeded"}


def test_a_last_batch_that_comes_twice_changes_nothing(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=2)
    lease = claim(database)
    record(database, lease, successes(lease), is_last=True)
    before = job_row(database, job_id), chunk_row(database, lease), result_rows(database, job_id)
    with pytest.raises(LeaseLostError):
        record(database, lease, successes(lease), is_last=True)
    assert (job_row(database, job_id), chunk_row(database, lease), result_rows(database, job_id)) == before
    assert_job_is_sound(database, job_id)


@pytest.mark.parametrize("is_last", [False, True])
def test_a_lease_that_was_never_given_writes_nothing(database: Database, *, is_last: bool) -> None:
    register(database)
    job_id = submit(database)
    lease = claim(database)
    before = chunk_row(database, lease)
    for foreign in (
        replace(lease, lease_id="f" * 32),
        replace(lease, lease_id="f" * 32, chunk_id=999_999),
        replace(lease, lease_id="f" * 32, job_id="job_missing"),
    ):
        with pytest.raises(LeaseLostError):
            record(database, foreign, successes(lease), is_last=is_last)
    assert chunk_row(database, lease) == before
    assert result_rows(database, job_id) == []


@pytest.mark.parametrize("is_last", [False, True])
def test_a_worker_that_wakes_after_its_chunk_went_on_writes_nothing(
    database: Database, *, is_last: bool
) -> None:
    register(database, "frozen")
    register(database, "other")
    job_id = submit(database, num_requests=2)
    frozen = claim(database, "frozen")
    expire(database, frozen)
    recovery.run_once(database, LEASE_S, max_attempts=3)
    for _ in ("while it is queued", "while another holds it"):
        before = chunk_row(database, frozen)
        with pytest.raises(LeaseLostError):
            record(database, frozen, successes(frozen), is_last=is_last)
        with pytest.raises(LeaseLostError):
            leases.release(database, frozen)
        assert chunk_row(database, frozen) == before
        assert result_rows(database, job_id) == []
        leases.claim(database, "other", CARD, LEASE_S)
    row = chunk_row(database, frozen)
    assert row["worker_id"] == "other"
    other = Lease(row["lease_id"], frozen.chunk_id, job_id, 0, 2, row["attempt"])
    record(database, other, successes(other), is_last=True)
    with pytest.raises(LeaseLostError):
        record(database, frozen, successes(frozen), is_last=is_last)
    assert_job_is_sound(database, job_id)


def test_a_lease_that_is_over_but_that_nobody_took_still_writes(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=2)
    lease = claim(database)
    expire(database, lease)
    record(database, lease, successes(lease), is_last=True)
    assert_job_is_sound(database, job_id)


def test_a_chunk_is_not_done_while_a_result_is_missing(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=2)
    lease = claim(database)
    with pytest.raises(Exception, match="ck_chunks_done"):
        record(database, lease, [success(0)], is_last=True)
    assert chunk_row(database, lease)["state"] == ChunkState.RUNNING
    assert result_rows(database, job_id) == []
    finish(database, lease)
    assert_job_is_sound(database, job_id)


def test_only_requests_without_a_result_are_loaded(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=6, chunk_size=3, bad=[1])
    lease = claim(database)
    assert [request.index for request in leases.load_requests(database, lease)] == [0, 2]
    record(database, lease, [success(2)], is_last=False)
    pending = leases.load_requests(database, lease)
    assert [request.index for request in pending] == [0]
    assert '"prompt"' in pending[0].body
    record(database, lease, [success(0)], is_last=True)
    assert leases.load_requests(database, lease) == []
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_a_result_keeps_the_attempt_that_made_it(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=3, chunk_size=3, bad=[2])
    first = claim(database)
    record(database, first, [success(0)], is_last=False)
    expire(database, first)
    recovery.run_once(database, LEASE_S, max_attempts=3)
    second = claim(database)
    assert second.attempt == 2
    finish(database, second)
    # a line that was bad at submit was never tried
    assert [row["attempt"] for row in result_rows(database, job_id)] == [1, 2, 0]
    assert_job_is_sound(database, job_id)


# --- release --------------------------------------------------------------------------------------------------


def test_a_chunk_given_back_is_claimed_again_and_its_attempt_does_not_count(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=2)
    lease = claim(database)
    record(database, lease, [success(0)], is_last=False)
    leases.release(database, lease)
    assert chunk_row(database, lease)["state"] == ChunkState.QUEUED
    assert chunk_row(database, lease)["attempt"] == 0
    again = claim(database)
    assert (again.chunk_id, again.attempt) == (lease.chunk_id, 1)
    assert again.lease_id != lease.lease_id
    record(database, again, [success(1)], is_last=True)
    assert_job_is_sound(database, job_id)


def test_a_chunk_given_back_in_a_cancelling_job_is_cancelled_and_ends_the_job(database: Database) -> None:
    register(database)
    job_id = submit(database)
    lease = claim(database)
    cancel(database, job_id)
    assert job_row(database, job_id)["state"] == JobState.CANCELLING
    record(database, lease, [success(0)], is_last=False)
    leases.release(database, lease)
    assert job_row(database, job_id)["state"] == JobState.CANCELLED
    outcomes = assert_job_is_sound(database, job_id)
    assert [outcome.status for outcome in outcomes] == ["succeeded", "cancelled", "cancelled", "cancelled"]


def test_a_chunk_that_is_finished_in_a_cancelling_job_ends_it_too(database: Database) -> None:
    register(database)
    job_id = submit(database)
    lease = claim(database)
    cancel(database, job_id)
    finish(database, lease)
    assert job_row(database, job_id)["state"] == JobState.CANCELLED
    assert chunk_states(database, job_id) == [ChunkState.DONE, ChunkState.QUEUED]
    assert_job_is_sound(database, job_id)


def test_a_job_that_is_cancelled_before_its_first_claim_is_over_at_once(database: Database) -> None:
    job_id = submit(database)
    cancel(database, job_id)
    assert job_row(database, job_id)["state"] == JobState.CANCELLED
    outcomes = assert_job_is_sound(database, job_id)
    assert {outcome.error_code for outcome in outcomes} == {"cancelled"}


# --- renew ----------------------------------------------------------------------------------------------------


def test_a_renewal_puts_off_the_end_and_leaves_a_heartbeat(database: Database) -> None:
    register(database)
    submit(database)
    lease = claim(database)
    expire(database, lease)
    set_columns(database, workers, workers.c.id == "w1", heartbeat_at=0.0)
    assert leases.renew(database, "w1", [lease], LEASE_S) == Renewal(frozenset(), frozenset())
    with database.read() as tx:
        now, heartbeat_at = tx.execute(select(now_s(), workers.c.heartbeat_at)).one()
    assert chunk_row(database, lease)["lease_until"] == pytest.approx(now + LEASE_S, abs=60)
    assert heartbeat_at == pytest.approx(now, abs=60)


def test_a_renewal_without_leases_is_a_heartbeat(database: Database) -> None:
    register(database)
    set_columns(database, workers, workers.c.id == "w1", heartbeat_at=0.0)
    assert leases.renew(database, "w1", [], LEASE_S) == Renewal(frozenset(), frozenset())
    assert queries.list_workers(database)[0].heartbeat_age_s == pytest.approx(0, abs=60)


def test_a_renewal_tells_what_is_lost_and_what_is_being_cancelled(database: Database) -> None:
    register(database)
    submit(database, "kept", num_requests=4)
    submit(database, "cancelling", num_requests=2)
    by_job = {lease.job_id: lease for lease in (claim(database), claim(database))}
    lost, done = claim(database), replace(by_job["kept"], lease_id="d" * 32)
    expire(database, lost)
    recovery.run_once(database, LEASE_S, max_attempts=3)
    cancel(database, "cancelling")
    renewal = leases.renew(database, "w1", [*by_job.values(), lost, done], LEASE_S)
    assert renewal.lost == {lost.lease_id, done.lease_id}
    assert renewal.cancelling == {by_job["cancelling"].lease_id}
    # a lease that is lost stays lost
    assert chunk_row(database, lost)["lease_until"] is None


def test_a_renewal_brings_a_worker_that_was_taken_for_gone_back_to_ready(database: Database) -> None:
    register(database)
    set_columns(database, workers, workers.c.id == "w1", state="gone", heartbeat_at=0.0)
    leases.renew(database, "w1", [], LEASE_S)
    assert [worker.state for worker in queries.list_workers(database)] == ["ready"]


@pytest.mark.parametrize("state", ["starting", "ready", "draining", "stopped"])
def test_a_renewal_leaves_any_other_state_of_the_worker_alone(database: Database, state: str) -> None:
    register(database)
    set_columns(database, workers, workers.c.id == "w1", state=state)
    leases.renew(database, "w1", [], LEASE_S)
    assert [worker.state for worker in queries.list_workers(database, alive_only=False)] == [state]
