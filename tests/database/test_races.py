"""Whoever comes at the same time, a chunk has one holder, a job one end, and a cancel leaves nothing queued."""

from functools import partial

import pytest
from database.rows import (
    CARD,
    LEASE_S,
    Call,
    Pause,
    all_at_once,
    cancel,
    chunk_states,
    claim,
    expire,
    finish,
    finish_all,
    job_row,
    overlap,
    record,
    register,
    submit,
    successes,
)
from soundness import assert_job_is_sound
from sqlalchemy import select

from db import leases, recovery
from db.database import Database
from db.errors import LeaseLostError
from db.states import ChunkState, JobState
from db.tables import chunks

_NUM_THREADS = 8


def _sweep(database: Database) -> recovery.Recovery:
    return recovery.run_once(database, LEASE_S, max_attempts=3)


@pytest.mark.parametrize("num_jobs", [1, 4])
def test_claims_at_the_same_time_each_get_a_chunk_of_their_own(database: Database, num_jobs: int) -> None:
    register(database)
    for number in range(num_jobs):
        submit(database, f"job_{number}", num_requests=2 * _NUM_THREADS // num_jobs)
    claims = all_at_once([partial(claim, database)] * _NUM_THREADS)
    assert len({lease.chunk_id for lease in claims}) == _NUM_THREADS
    assert len({lease.lease_id for lease in claims}) == _NUM_THREADS
    assert leases.claim(database, "w1", CARD, LEASE_S) is None
    for lease in claims:
        finish(database, lease)
    for number in range(num_jobs):
        assert_job_is_sound(database, f"job_{number}")


def test_of_many_claims_only_as_many_succeed_as_there_are_chunks(database: Database) -> None:
    register(database)
    submit(database, num_requests=6)
    claims = all_at_once([partial(leases.claim, database, "w1", CARD, LEASE_S)] * _NUM_THREADS)
    assert len({lease.chunk_id for lease in claims if lease is not None}) == 3
    assert claims.count(None) == _NUM_THREADS - 3


def test_workers_at_the_same_time_do_the_whole_job_once(database: Database) -> None:
    for number in range(4):
        register(database, f"w{number}")
    job_id = submit(database, num_requests=60, chunk_size=3)
    all_at_once([partial(finish_all, database, f"w{number}") for number in range(4)])
    assert_job_is_sound(database, job_id)


def test_a_claim_passes_over_a_chunk_that_somebody_has_locked(postgres_database: Database) -> None:
    register(postgres_database)
    submit(postgres_database)
    rival = select(chunks.c.id).where(chunks.c.first_index == 0).with_for_update()
    # in a thread, so that a claim that waits is an error and no deadlock
    with postgres_database.write() as tx:
        tx.execute(rival).one()
        assert Call(partial(claim, postgres_database)).result().first_index == 2
        assert Call(partial(leases.claim, postgres_database, "w1", CARD, LEASE_S)).result() is None
    assert claim(postgres_database).first_index == 0


def test_two_last_chunks_that_finish_at_the_same_time_end_the_job_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    job_id = submit(database)
    first, second = claim(database), claim(database)
    ends = Pause(monkeypatch, "complete_job")
    ends.end()  # it only counts
    overlap(
        database,
        Pause(monkeypatch, "finish_chunk"),
        partial(record, database, first, successes(first), is_last=True),
        partial(record, database, second, successes(second), is_last=True),
    )
    assert ends.num_calls == 1
    assert job_row(database, job_id)["state"] == JobState.COMPLETED
    assert_job_is_sound(database, job_id)


def test_many_last_chunks_at_the_same_time_end_the_job(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=2 * _NUM_THREADS)
    claims = [claim(database) for _ in range(_NUM_THREADS)]
    all_at_once([partial(finish, database, lease) for lease in claims])
    assert job_row(database, job_id)["state"] == JobState.COMPLETED
    assert_job_is_sound(database, job_id)


def test_a_cancel_waits_for_a_claim_under_way(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    register(database)
    job_id = submit(database)
    overlap(
        database,
        Pause(monkeypatch, "claim_chunk"),
        partial(claim, database),
        partial(cancel, database, job_id),
    )
    assert chunk_states(database, job_id) == [ChunkState.RUNNING, ChunkState.QUEUED]
    assert job_row(database, job_id)["state"] == JobState.CANCELLING


def test_a_claim_that_waited_for_a_cancel_gets_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    job_id = submit(database)
    claimed = overlap(
        database,
        Pause(monkeypatch, "cancel_job"),
        partial(cancel, database, job_id),
        partial(leases.claim, database, "w1", CARD, LEASE_S),
    )
    assert claimed is None
    assert job_row(database, job_id)["state"] == JobState.CANCELLED
    assert_job_is_sound(database, job_id)


@pytest.mark.parametrize("arrow", ["release", "requeue"])
def test_a_cancel_takes_a_chunk_that_was_on_its_way_back(
    database: Database, monkeypatch: pytest.MonkeyPatch, arrow: str
) -> None:
    register(database)
    job_id = submit(database)
    lease = claim(database)
    expire(database, lease)
    give_back = partial(leases.release, database, lease) if arrow == "release" else partial(_sweep, database)
    overlap(database, Pause(monkeypatch, f"{arrow}_chunk"), give_back, partial(cancel, database, job_id))
    assert chunk_states(database, job_id) == [ChunkState.QUEUED, ChunkState.QUEUED]
    assert job_row(database, job_id)["state"] == JobState.CANCELLED
    assert_job_is_sound(database, job_id)


@pytest.mark.parametrize("arrow", ["release", "requeue"])
def test_a_chunk_that_waited_for_a_cancel_does_not_come_back(
    database: Database, monkeypatch: pytest.MonkeyPatch, arrow: str
) -> None:
    register(database)
    job_id = submit(database)
    lease = claim(database)
    expire(database, lease)
    give_back = partial(leases.release, database, lease) if arrow == "release" else partial(_sweep, database)
    overlap(database, Pause(monkeypatch, "cancel_job"), partial(cancel, database, job_id), give_back)
    assert chunk_states(database, job_id) == [ChunkState.QUEUED, ChunkState.QUEUED]
    assert job_row(database, job_id)["state"] == JobState.CANCELLED
    assert_job_is_sound(database, job_id)


def test_a_chunk_that_is_finished_while_the_sweeper_takes_it_keeps_its_results(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    job_id = submit(database, num_requests=2)
    lease = claim(database)
    expire(database, lease)
    swept = overlap(
        database,
        Pause(monkeypatch, "finish_chunk"),
        partial(record, database, lease, successes(lease), is_last=True),
        partial(_sweep, database),
    )
    assert swept == recovery.Recovery()
    assert_job_is_sound(database, job_id)


def test_a_chunk_that_the_sweeper_took_first_refuses_its_late_worker(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    job_id = submit(database, num_requests=2)
    lease = claim(database)
    expire(database, lease)
    with pytest.raises(LeaseLostError):
        overlap(
            database,
            Pause(monkeypatch, "requeue_chunk"),
            partial(_sweep, database),
            partial(record, database, lease, successes(lease), is_last=True),
        )
    finish(database, claim(database))
    assert_job_is_sound(database, job_id)
