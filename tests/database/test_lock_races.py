"""Records of several jobs at once, and a record against whatever else may end its chunk: no deadlock, no double."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from database.rows import (
    LEASE_S,
    Pause,
    all_at_once,
    cancel,
    claim,
    finish_all,
    overlap,
    pass_deadline,
    register,
    result_rows,
    submit,
    success,
    successes,
)
from soundness import assert_job_is_sound

from db import leases, queries, recovery
from db.database import Database
from db.leases import Record
from db.queries import Counts
from db.states import JobState

_NUM_THREADS = 8
_NUM_ROUNDS = 5

# What may end a chunk or its job while its worker records, with the arrow that does it.
_RIVALS: dict[str, Callable[[Database], Any]] = {
    "cancel_job": lambda database: cancel(database, "job_a"),
    "expire_job": lambda database: recovery.run_once(database, LEASE_S, 3),
    "requeue_chunk": lambda database: recovery.worker_died(database, "w1", 3),
}


def _whole(database: Database, job_id: str) -> Record:
    """All of another chunk of the job."""
    lease = claim(database, job_id=job_id)
    return Record(lease, successes(lease), is_last=True)


@pytest.mark.parametrize("is_same", [False, True])
def test_records_of_two_jobs_in_opposite_order_do_not_deadlock(
    database: Database, monkeypatch: pytest.MonkeyPatch, *, is_same: bool
) -> None:
    """The first holds one job when the second comes. With the very same records, the second writes nothing."""
    register(database)
    ids = [submit(database, job_id) for job_id in ("job_a", "job_b")]
    first = [_whole(database, job_id) for job_id in ids]
    others = [_whole(database, job_id) for job_id in ids]
    second = list(reversed(first if is_same else others))
    lost = overlap(
        database,
        Pause(monkeypatch, "lock_job"),
        partial(leases.record, database, first),
        partial(leases.record, database, second),
    )
    assert lost == (frozenset(one.lease.lease_id for one in first) if is_same else frozenset())
    if is_same:
        assert [queries.get_job(database, job_id).counts.succeeded for job_id in ids] == [2, 2]
        assert leases.record(database, others) == frozenset()
    for job_id in ids:
        assert queries.get_job(database, job_id).counts == Counts(succeeded=4)
        assert_job_is_sound(database, job_id)


def test_many_records_of_two_jobs_at_once_all_count(database: Database) -> None:
    """Every other one names the jobs the other way round; each chunk is written in several rounds."""
    register(database)
    ids = [
        submit(database, job_id, num_requests=_NUM_THREADS * _NUM_ROUNDS, chunk_size=_NUM_ROUNDS)
        for job_id in ("job_a", "job_b")
    ]
    held = [[claim(database, job_id=job_id) for job_id in ids] for _ in range(_NUM_THREADS)]
    for pair in held[::2]:
        pair.reverse()
    for number in range(_NUM_ROUNDS):
        is_last = number == _NUM_ROUNDS - 1
        lost = all_at_once(
            [
                partial(
                    leases.record,
                    database,
                    [Record(lease, [success(lease.first_index + number)], is_last) for lease in pair],
                )
                for pair in held
            ]
        )
        assert not frozenset().union(*lost)
        for job_id in ids:
            assert queries.get_job(database, job_id).counts.succeeded == _NUM_THREADS * (number + 1)
    for job_id in ids:
        assert queries.get_job(database, job_id).state == JobState.COMPLETED
        assert_job_is_sound(database, job_id)


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("comes_first", ["record", "rival"])
@pytest.mark.parametrize("arrow", _RIVALS)
def test_a_record_and_what_ends_its_chunk_at_once_write_it_once_or_not_at_all(
    database: Database, monkeypatch: pytest.MonkeyPatch, arrow: str, comes_first: str, *, is_last: bool
) -> None:
    register(database)
    job_id = submit(database, deadline_s=1e6)
    lease = claim(database)
    if arrow == "expire_job":
        pass_deadline(database, job_id)
    batch = successes(lease) if is_last else successes(lease)[:1]
    write = partial(leases.record, database, [Record(lease, batch, is_last)])
    rival = partial(_RIVALS[arrow], database)
    if comes_first == "record":
        overlap(database, Pause(monkeypatch, "finish_chunk" if is_last else "record_chunk"), write, rival)
        is_kept = True
    else:
        lost = overlap(database, Pause(monkeypatch, arrow), rival, write)
        # a cancel lets what runs come in; to the others the lease is lost
        is_kept = arrow == "cancel_job"
        assert lost == (frozenset() if is_kept else {lease.lease_id})
    written = {row["index"]: row["attempt"] for row in result_rows(database, job_id)}
    assert written == ({result.index: 1 for result in batch} if is_kept else {})
    assert queries.get_job(database, job_id).counts.succeeded == len(written)
    # whatever is left goes its way
    recovery.worker_died(database, "w1", 3)
    finish_all(database, register(database, "w2"))
    ended = {"cancel_job": JobState.CANCELLED, "expire_job": JobState.EXPIRED}
    assert queries.get_job(database, job_id).state == ended.get(arrow, JobState.COMPLETED)
    assert_job_is_sound(database, job_id)
