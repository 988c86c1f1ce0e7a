"""Many sweepers at once mend each thing once; and records of the same jobs at once neither lock nor count wrongly."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial

import pytest
from database.rows import (
    LEASE_S,
    Pause,
    all_at_once,
    cancel,
    claim,
    expire,
    expire_submit,
    finish_all,
    overlap,
    pass_deadline,
    record,
    register,
    silence,
    stage,
    submit,
    success,
    successes,
    worker_state,
)
from soundness import assert_job_is_sound

from db import leases, queries, recovery, transitions
from db.database import Database
from db.errors import LeaseLostError, NotFoundError
from db.leases import Record
from db.recovery import Recovery
from db.states import JobState


def _sweep(database: Database) -> Recovery:
    return recovery.run_once(database, LEASE_S, max_attempts=2)


@pytest.mark.parametrize("num_sweepers", [2, 8])
def test_sweepers_at_the_same_time_mend_each_thing_once(database: Database, num_sweepers: int) -> None:
    register(database)
    register(database, "silent")
    silence(database, "silent", 10 * LEASE_S)
    submit(database, "deleting")
    finish_all(database)
    with database.write() as tx:
        transitions.delete_job(tx, "deleting")
    running = submit(database, "running", num_requests=8)
    expire(database, *(claim(database, job_id=running) for _ in range(4)))
    for number in range(3):
        pass_deadline(database, submit(database, f"late_{number}"))
        expire_submit(database, stage(database, f"dead_{number}", num_requests=6))
    expected = Recovery(num_requeued=4, num_jobs_expired=3, num_jobs_erased=4, num_workers_lost=1)
    rounds = all_at_once([partial(_sweep, database)] * num_sweepers)
    summed = Recovery(*(sum(getattr(one, field.name) for one in rounds) for field in fields(Recovery)))
    assert summed == expected
    assert _sweep(database) == Recovery()
    assert worker_state(database, "silent") == "gone"
    for job_id in ("dead_0", "deleting"):
        with pytest.raises(NotFoundError):
            queries.get_job(database, job_id)
    finish_all(database)
    for job_id in ("running", "late_0", "late_1", "late_2"):
        assert_job_is_sound(database, job_id)


@pytest.mark.parametrize("num_sweepers", [2, 8])
def test_sweepers_at_the_same_time_requeue_and_split_each_chunk_once(
    database: Database, num_sweepers: int
) -> None:
    register(database)
    job_id = submit(database, num_requests=16, chunk_size=4)
    for expected in (Recovery(num_requeued=4), Recovery(num_split=4)):
        expire(database, *(claim(database) for _ in range(4)))
        rounds = all_at_once([partial(_sweep, database)] * num_sweepers)
        assert sum(one.num_requeued for one in rounds) == expected.num_requeued
        assert sum(one.num_split for one in rounds) == expected.num_split
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_records_of_the_same_jobs_in_opposite_order_do_not_wait_for_each_other(database: Database) -> None:
    register(database)
    jobs = [submit(database, name, num_requests=16, chunk_size=1) for name in ("job_a", "job_b")]
    held = {job_id: [claim(database, job_id=job_id) for _ in range(16)] for job_id in jobs}
    calls: list[Callable[[], frozenset[str]]] = []
    for number in range(8):
        mine = [held[job_id].pop() for job_id in jobs for _ in range(2)]
        ordered = mine if number % 2 else mine[::-1]
        records = [Record(lease, successes(lease), is_last=True) for lease in ordered]
        calls.append(partial(leases.record, database, records))
    assert all_at_once(calls) == [frozenset()] * 8
    for job_id in jobs:
        assert queries.get_job(database, job_id).counts == queries.Counts(succeeded=16)
        assert_job_is_sound(database, job_id)


def test_of_a_group_only_what_is_lost_is_not_written(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=6)
    lost, kept, partly = (claim(database) for _ in range(3))
    expire(database, lost)
    assert _sweep(database).num_requeued == 1
    records = [
        Record(lost, successes(lost), is_last=True),
        Record(kept, successes(kept), is_last=True),
        Record(partly, [success(partly.first_index)], is_last=False),
    ]
    assert leases.record(database, records) == {lost.lease_id}
    assert queries.get_job(database, job_id).counts == queries.Counts(pending=2, running=1, succeeded=3)
    finish_all(database)
    leases.release(database, partly)
    finish_all(database)
    assert_job_is_sound(database, job_id)


@pytest.mark.parametrize("is_last", [False, True])
def test_a_record_that_waited_for_a_burial_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch, *, is_last: bool
) -> None:
    register(database)
    job_id = submit(database, num_requests=2)
    lease = claim(database)
    with pytest.raises(LeaseLostError):
        overlap(
            database,
            Pause(monkeypatch, "requeue_chunk"),
            partial(recovery.worker_died, database, "w1", 2),
            partial(record, database, lease, successes(lease), is_last=is_last),
        )
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_a_cancel_that_waited_for_the_last_record_finds_the_job_completed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    job_id = submit(database, num_requests=2)
    lease = claim(database)
    with pytest.raises(Exception, match="completed"):
        overlap(
            database,
            Pause(monkeypatch, "finish_chunk"),
            partial(record, database, lease, successes(lease), is_last=True),
            partial(cancel, database, job_id),
        )
    assert_job_is_sound(database, job_id)


def test_a_record_that_waited_for_a_cancel_is_kept_and_ends_the_job(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    job_id = submit(database, num_requests=4)
    lease = claim(database)
    overlap(
        database,
        Pause(monkeypatch, "cancel_job"),
        partial(cancel, database, job_id),
        partial(record, database, lease, successes(lease), is_last=True),
    )
    assert queries.get_job(database, job_id).state is JobState.CANCELLED
    assert [one.status for one in assert_job_is_sound(database, job_id)] == ["succeeded"] * 2 + [
        "cancelled"
    ] * 2
