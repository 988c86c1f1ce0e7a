"""A deadline, a split or a deletion meets somebody at work: one of the two waits, and then knows what became of it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from database.rows import (
    CARD,
    LEASE_S,
    Pause,
    all_at_once,
    cancel,
    chunk_rows,
    chunk_states,
    claim,
    expire,
    finish_all,
    job_row,
    num_rows,
    overlap,
    pass_deadline,
    record,
    register,
    result_rows,
    set_columns,
    submit,
    success,
    successes,
    wait_blocked,
)
from soundness import assert_job_is_sound
from sqlalchemy import Connection, select, text

from db import leases, queries, recovery, transitions
from db.database import Database
from db.errors import LeaseLostError, NotFoundError, WrongStateError
from db.leases import Record
from db.outcomes import Outcome
from db.recovery import Recovery
from db.states import ChunkState, JobState
from db.tables import chunks
from db.transitions import Lease
from jobs import export, retention
from jobs.forms import native

_NOTHING = Recovery()


def _sweep(database: Database) -> Recovery:
    return recovery.run_once(database, LEASE_S, max_attempts=1)


@contextmanager
def _recording(database: Database, lease: Lease, index: int) -> Iterator[Connection]:
    """A `record` in a second connection that has written, holds its locks and has yet to commit."""
    with database.write() as tx:
        transitions.lock_job(tx, lease.job_id)
        _, now = leases._hold_all(tx, [lease.lease_id])
        one = Record(lease, [success(index)], is_last=False)
        leases.write_and_count(tx, [one], now)
        yield tx


# --- a deadline -----------------------------------------------------------------------------------------------


def test_results_that_are_being_written_at_the_deadline_are_kept(postgres_database: Database) -> None:
    database = postgres_database
    register(database)
    job_id = submit(database, deadline_s=-1.0)
    lease = claim(database)
    with ThreadPoolExecutor(1) as pool:
        with _recording(database, lease, 1):
            swept = pool.submit(_sweep, database)
            wait_blocked(database)
        assert swept.result(30) == Recovery(num_jobs_expired=1)
    assert queries.get_job(database, job_id).counts == queries.Counts(succeeded=1, expired=3)
    assert_job_is_sound(database, job_id)


def test_a_last_result_before_the_deadline_completes_the_job(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    job_id = submit(database, num_requests=2, deadline_s=-1.0)
    lease = claim(database)
    swept = overlap(
        database,
        Pause(monkeypatch, "finish_chunk"),
        partial(record, database, lease, successes(lease), is_last=True),
        partial(_sweep, database),
    )
    assert swept == _NOTHING
    assert job_row(database, job_id)["state"] == JobState.COMPLETED
    assert_job_is_sound(database, job_id)


@pytest.mark.parametrize("is_last", [False, True])
def test_results_that_waited_for_the_deadline_are_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch, *, is_last: bool
) -> None:
    register(database)
    job_id = submit(database, num_requests=2, deadline_s=-1.0)
    lease = claim(database)
    with pytest.raises(LeaseLostError):
        overlap(
            database,
            Pause(monkeypatch, "expire_job"),
            partial(_sweep, database),
            partial(record, database, lease, successes(lease), is_last=is_last),
        )
    assert result_rows(database, job_id) == []
    assert_job_is_sound(database, job_id)


@pytest.mark.parametrize("num_claimed", [0, 1])
def test_a_chunk_that_is_being_claimed_at_the_deadline_expires_too(
    database: Database, monkeypatch: pytest.MonkeyPatch, num_claimed: int
) -> None:
    register(database)
    job_id = submit(database, num_requests=6, deadline_s=-1.0)
    for _ in range(num_claimed):
        claim(database)
    swept = overlap(
        database,
        Pause(monkeypatch, "claim_chunk"),
        partial(claim, database),
        partial(_sweep, database),
    )
    assert swept == Recovery(num_jobs_expired=1)
    assert chunk_states(database, job_id) == [ChunkState.QUEUED] * 3
    assert_job_is_sound(database, job_id)


@pytest.mark.parametrize("num_claimed", [0, 1])
def test_a_claim_that_waited_for_the_deadline_gets_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch, num_claimed: int
) -> None:
    register(database)
    job_id = submit(database, num_requests=6, deadline_s=-1.0)
    for _ in range(num_claimed):
        claim(database)
    claimed = overlap(
        database,
        Pause(monkeypatch, "expire_job"),
        partial(_sweep, database),
        partial(leases.claim, database, "w1", CARD, LEASE_S),
    )
    assert claimed is None
    assert_job_is_sound(database, job_id)


def test_a_deadline_that_waited_for_a_cancel_leaves_the_job_to_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    job_id = submit(database, deadline_s=-1.0)
    claim(database)
    pause = Pause(monkeypatch, "cancel_job")
    assert overlap(database, pause, partial(cancel, database, job_id), partial(_sweep, database)) == _NOTHING
    assert job_row(database, job_id)["state"] == JobState.CANCELLING
    assert chunk_states(database, job_id) == [ChunkState.RUNNING, ChunkState.QUEUED]


def test_a_cancel_that_waited_for_a_deadline_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    job_id = submit(database, deadline_s=-1.0)
    claim(database)
    pause = Pause(monkeypatch, "expire_job")
    with pytest.raises(WrongStateError):
        overlap(database, pause, partial(_sweep, database), partial(cancel, database, job_id))
    assert {outcome.status for outcome in assert_job_is_sound(database, job_id)} == {"expired"}


def test_a_renewal_and_a_deadline_take_chunks_in_the_same_order(postgres_database: Database) -> None:
    """Else each could hold what the other waits for. Both have an index here that begins with the second chunk."""
    database = postgres_database
    with database.write() as tx:
        for name in ("seqscan", "bitmapscan"):
            tx.execute(text(f"ALTER DATABASE {database.url.database} SET enable_{name} = off"))
    database.close()  # a connection has its settings from its start
    register(database)
    job_id = submit(database)
    ids = [claim(database).chunk_id for _ in range(2)]
    for chunk_id, lease_id, first_index in zip(ids, ("b" * 32, "a" * 32), (4, 2), strict=True):
        where = chunks.c.id == chunk_id
        set_columns(database, chunks, where, lease_id=lease_id, first_index=first_index)
    with database.read() as tx:
        held = [transitions.lease_of(row) for row in tx.execute(select(*transitions.LEASE_COLUMNS))]
    pass_deadline(database, job_id)
    lock = select(chunks.c.id).order_by(chunks.c.id).with_for_update(skip_locked=True)
    for call in (partial(leases.renew, database, "w1", held, LEASE_S), partial(_sweep, database)):
        with ThreadPoolExecutor(1) as pool:
            with database.write() as tx:
                tx.execute(lock.where(chunks.c.id == ids[0])).one()
                done = pool.submit(call)
                wait_blocked(database)
                # whoever waits for the first holds none behind it
                with database.write() as other:
                    assert other.execute(lock).scalars().all() == ids[1:]
            done.result(30)
    assert chunk_states(database, job_id) == [ChunkState.QUEUED] * 2


# --- a split --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_last", [False, True])
def test_a_zombie_that_waited_for_the_split_of_its_chunk_writes_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch, *, is_last: bool
) -> None:
    register(database)
    job_id = submit(database, num_requests=16, chunk_size=16)
    zombie = claim(database)
    expire(database, zombie)
    with pytest.raises(LeaseLostError):
        overlap(
            database,
            Pause(monkeypatch, "split_chunk"),
            partial(_sweep, database),
            partial(record, database, zombie, successes(zombie), is_last=is_last),
        )
    assert result_rows(database, job_id) == []
    assert [row["num_requests"] for row in chunk_rows(database, job_id)] == [2] * 8
    # nor may it write when somebody runs a part of what was its own
    part = claim(database)
    assert part.chunk_id == zombie.chunk_id
    for call in (
        partial(record, database, zombie, [success(0)], is_last=is_last),
        partial(leases.release, database, zombie),
        partial(leases.isolate, database, zombie),
    ):
        with pytest.raises(LeaseLostError):
            call()
    record(database, part, successes(part), is_last=True)
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_results_that_a_zombie_is_writing_count_in_their_part(postgres_database: Database) -> None:
    database = postgres_database
    register(database)
    job_id = submit(database, num_requests=9, chunk_size=9)
    zombie = claim(database)
    expire(database, zombie)
    with ThreadPoolExecutor(1) as pool:
        with _recording(database, zombie, 4):
            swept = pool.submit(_sweep, database)
            wait_blocked(database)
        assert swept.result(30) == Recovery(num_split=1)
    rows = chunk_rows(database, job_id)
    # with the fifth request done, eight were left for eight parts
    assert [row["num_requests"] for row in rows] == [1, 1, 1, 2, 1, 1, 1, 1]
    assert [row["num_succeeded"] for row in rows] == [0, 0, 0, 1, 0, 0, 0, 0]
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_a_zombie_that_finishes_while_its_chunk_is_to_be_split_keeps_it_whole(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    job_id = submit(database, num_requests=16, chunk_size=16)
    zombie = claim(database)
    expire(database, zombie)
    swept = overlap(
        database,
        Pause(monkeypatch, "finish_chunk"),
        partial(record, database, zombie, successes(zombie), is_last=True),
        partial(_sweep, database),
    )
    assert swept == _NOTHING
    assert chunk_states(database, job_id) == [ChunkState.DONE]
    assert_job_is_sound(database, job_id)


def test_two_that_split_the_same_chunk_split_it_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweeper, and the supervisor of the worker that died."""
    register(database)
    job_id = submit(database, num_requests=16, chunk_size=16)
    expire(database, claim(database))
    second = overlap(
        database,
        Pause(monkeypatch, "split_chunk"),
        partial(_sweep, database),
        partial(recovery.worker_died, database, "w1", 1),
    )
    assert second == _NOTHING
    assert [row["first_index"] for row in chunk_rows(database, job_id)] == list(range(0, 16, 2))
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_two_sweepers_that_give_up_the_same_request_fail_it_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    job_id = submit(database, num_requests=1)
    expire(database, claim(database))
    assert _sweep(database) == Recovery(num_split=1)
    leases.isolate(database, alone := claim(database))
    expire(database, alone)
    second = overlap(
        database, Pause(monkeypatch, "finish_chunk"), partial(_sweep, database), partial(_sweep, database)
    )
    assert second == _NOTHING
    assert [outcome.error_code for outcome in assert_job_is_sound(database, job_id)] == ["engine_crash"]


def test_many_sweepers_at_the_same_time_split_each_chunk_once(database: Database) -> None:
    register(database)
    job_id = submit(database, num_requests=64, chunk_size=16)
    expire(database, *(claim(database) for _ in range(4)))
    rounds = all_at_once([partial(_sweep, database)] * 4)
    assert sum(done.num_split for done in rounds) == 4
    assert [row["first_index"] for row in chunk_rows(database, job_id)] == list(range(0, 64, 2))
    finish_all(database)
    assert_job_is_sound(database, job_id)


def test_a_cancel_that_waited_for_a_split_takes_every_part(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    job_id = submit(database, num_requests=16, chunk_size=16)
    expire(database, claim(database))
    overlap(
        database,
        Pause(monkeypatch, "split_chunk"),
        partial(_sweep, database),
        partial(cancel, database, job_id),
    )
    assert chunk_states(database, job_id) == [ChunkState.QUEUED] * 8
    assert job_row(database, job_id)["state"] == JobState.CANCELLED
    assert_job_is_sound(database, job_id)


# --- a deletion -----------------------------------------------------------------------------------------------


def test_an_export_that_a_deletion_overtakes_waits_for_nobody_and_fails_whole(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The deletion begins at the export's first line, and stands still in its first step, with rows locked."""
    database = postgres_database
    register(database)
    job_id = submit(database)
    finish_all(database)
    with ExitStack() as held:

        def format_line(outcome: Outcome) -> bytes:
            if outcome.index == 0:
                with database.write() as tx:
                    transitions.delete_job(tx, job_id)
                transitions.erase_rows(held.enter_context(database.write()), job_id, 2)
            return real(outcome)

        real = native.format_line
        monkeypatch.setattr(export, "format_line", format_line)
        with pytest.raises(NotFoundError):
            export.export(database, job_id, str(tmp_path / "out.jsonl"))
    assert list(tmp_path.glob("*out*")) == []
    assert _sweep(database) == Recovery(num_jobs_erased=1)
    assert num_rows(database, job_id) == 0


def test_a_deletion_that_waited_for_another_finds_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database)
    job_id = submit(database)
    finish_all(database)
    with pytest.raises(NotFoundError):
        overlap(
            database,
            Pause(monkeypatch, "delete_job"),
            partial(retention.delete, database, job_id),
            partial(retention.delete, database, job_id),
        )
    assert num_rows(database, job_id) == 0


def test_a_deletion_and_sweepers_at_the_same_time_leave_no_row(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_ERASE_ROWS", 3)
    register(database)
    job_id = submit(database, num_requests=30)
    finish_all(database)
    with database.write() as tx:
        transitions.delete_job(tx, job_id)
    rounds = all_at_once([partial(_sweep, database)] * 4)
    assert sum(done.num_jobs_erased for done in rounds) == 1
    assert num_rows(database, job_id) == 0


def test_a_zombie_of_a_job_that_is_deleted_writes_nothing(database: Database) -> None:
    register(database)
    job_id = submit(database, deadline_s=-1.0)
    zombie = claim(database)
    _sweep(database)
    with database.write() as tx:
        transitions.delete_job(tx, job_id)
    for _ in ("while its rows go", "when they are gone"):
        for is_last in (False, True):
            with pytest.raises(LeaseLostError):
                record(database, zombie, successes(zombie), is_last=is_last)
        with pytest.raises(LeaseLostError):
            leases.release(database, zombie)
        recovery.erase_job(database, job_id)
    assert num_rows(database, job_id) == 0
