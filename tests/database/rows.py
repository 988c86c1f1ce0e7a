"""The rows that this ring's tests start from, the hand that ages them, and threads that meet in the database."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from threading import Barrier, Event, Thread
from typing import Any, Generic, TypeVar

import pytest
from servers import wait_until
from sqlalchemy import ColumnElement, Connection, Table, func, select, text, update

from db import leases, submits, transitions
from db.database import Database
from db.errors import LeaseLostError
from db.leases import NewResult, Record
from db.states import ChunkState
from db.submits import NewChunk, NewRequest
from db.tables import chunks, generations, jobs, now_s, requests, results, workers
from db.transitions import Lease, NewJob

CARD = "tiny"
LEASE_S = 300.0
PROMPT = "the words that nobody may log"
_DEADLINE_S = 30.0

Value = TypeVar("Value")


# --- set-up ---------------------------------------------------------------------------------------------------


def stage(
    database: Database,
    job_id: str = "job_a",
    *,
    num_requests: int = 4,
    chunk_size: int = 2,
    bad: Collection[int] = (),
    card_name: str = CARD,
    priority: int = 0,
    deadline_s: float | None = None,
    labels: Mapping[str, str] | None = None,
    selection: str | None = None,
) -> str:
    """A whole job that is still validating; the lines of `bad` are failed results from the start."""
    submits.begin(
        database,
        NewJob(
            job_id,
            card_name,
            "c" * 64,
            f"name: {card_name}",
            "input.jsonl",
            priority=priority,
            deadline_s=deadline_s,
            selection=selection,
            labels=labels or {},
        ),
    )
    submits.add(
        database,
        job_id,
        [line(index, is_bad=index in bad) for index in range(num_requests)],
        [
            NewChunk(first, len(indexes), len(set(bad).intersection(indexes)))
            for first in range(0, num_requests, chunk_size)
            for indexes in [range(first, min(first + chunk_size, num_requests))]
        ],
    )
    return job_id


def line(index: int, *, is_bad: bool = False) -> NewRequest:
    if is_bad:
        return NewRequest(index, None, None, "invalid_json", f"line {index + 1}: not JSON")
    return NewRequest(index, f"id-{index}", f'{{"prompt": "{PROMPT}"}}')


def commit(
    database: Database,
    job_id: str,
    *,
    num_requests: int = 4,
    num_failed: int = 0,
    key: str | None = None,
    input_sha256: str = "i" * 64,
    **values: Any,
) -> bool:
    return submits.commit(
        database,
        job_id,
        num_requests=num_requests,
        num_failed=num_failed,
        input_sha256=input_sha256,
        idempotency_key=key,
        **values,
    )


def submit(
    database: Database,
    job_id: str = "job_a",
    *,
    num_requests: int = 4,
    bad: Collection[int] = (),
    **staged: Any,
) -> str:
    """A visible job; keywords as for `stage`."""
    stage(database, job_id, num_requests=num_requests, bad=bad, **staged)
    assert commit(database, job_id, num_requests=num_requests, num_failed=len(bad))
    return job_id


def register(database: Database, worker_id: str = "w1") -> str:
    with database.write() as tx:
        transitions.register_worker(tx, worker_id, CARD, "echo", "host", 1)
    return worker_id


def claim(database: Database, worker_id: str = "w1", job_id: str | None = None) -> Lease:
    """A lease, where there must be one."""
    lease = leases.claim(database, worker_id, CARD, LEASE_S, job_id)
    assert lease is not None, "nothing can be claimed"
    return lease


def cancel(database: Database, job_id: str) -> None:
    with database.write() as tx:
        transitions.cancel_job(tx, job_id)
        transitions.close_job_if_over(tx, job_id, transitions.lock_job(tx, job_id))


def success(index: int) -> NewResult:
    """Costs 3 prompt tokens and 5 completion tokens."""
    return NewResult(
        index,
        result='{"response": "yes"}',
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=5,
    )


def failure(index: int) -> NewResult:
    return NewResult(index, error_code="engine_error", error_message="it broke")


def successes(lease: Lease) -> list[NewResult]:
    """One for each request of the chunk."""
    return [success(index) for index in range(lease.first_index, lease.first_index + lease.num_requests)]


def record(
    database: Database, lease: Lease, batch: Sequence[NewResult], *, is_last: bool, is_repeat: bool = False
) -> None:
    """LeaseLostError when nothing was written."""
    if leases.record(database, [Record(lease, batch, is_last)], is_repeat=is_repeat):
        raise LeaseLostError(f"the lease on chunk {lease.chunk_id} is lost")


def finish(database: Database, lease: Lease) -> None:
    """Whatever the chunk still lacks succeeds."""
    pending = leases.load_requests(database, lease)
    record(database, lease, [success(request.index) for request in pending], is_last=True)


def finish_all(database: Database, worker_id: str = "w1") -> None:
    while (lease := leases.claim(database, worker_id, CARD, LEASE_S)) is not None:
        finish(database, lease)


# --- looking ---------------------------------------------------------------------------------------------------


def row_of(tx: Connection, table: Table, key: object) -> dict[str, Any]:
    return dict(tx.execute(select(table).where(table.c.id == key)).mappings().one())


def job_row(database: Database, job_id: str) -> dict[str, Any]:
    with database.read() as tx:
        return row_of(tx, jobs, job_id)


def chunk_row(database: Database, lease: Lease) -> dict[str, Any]:
    with database.read() as tx:
        return row_of(tx, chunks, lease.chunk_id)


def worker_state(database: Database, worker_id: str) -> str:
    with database.read() as tx:
        return str(row_of(tx, workers, worker_id)["state"])


def chunk_states(database: Database, job_id: str) -> list[ChunkState]:
    """In input order."""
    statement = select(chunks.c.state).where(chunks.c.job_id == job_id).order_by(chunks.c.first_index)
    with database.read() as tx:
        return [ChunkState(state) for state in tx.execute(statement).scalars()]


def chunk_rows(database: Database, job_id: str) -> list[dict[str, Any]]:
    """In input order."""
    statement = select(chunks).where(chunks.c.job_id == job_id).order_by(chunks.c.first_index)
    with database.read() as tx:
        return [dict(row) for row in tx.execute(statement).mappings()]


def num_rows(database: Database, job_id: str) -> int:
    """Rows of the job, in any table."""
    with database.read() as tx:
        return sum(
            tx.execute(select(func.count()).select_from(table).where(column == job_id)).scalar_one()
            for table, column in (
                (jobs, jobs.c.id),
                (chunks, chunks.c.job_id),
                (requests, requests.c.job_id),
                (results, results.c.job_id),
                (generations, generations.c.job_id),
            )
        )


def result_rows(database: Database, job_id: str) -> list[dict[str, Any]]:
    """In input order."""
    statement = select(results).where(results.c.job_id == job_id).order_by(results.c.index)
    with database.read() as tx:
        return [dict(row) for row in tx.execute(statement).mappings()]


def positions(database: Database, job_id: str) -> dict[int, int]:
    """By index, of the results there are."""
    statement = select(results.c.index, results.c.position).where(results.c.job_id == job_id)
    with database.read() as tx:
        return dict(tx.execute(statement.order_by(results.c.index)).tuples().all())


# --- time passes -----------------------------------------------------------------------------------------------


def set_columns(database: Database, table: Table, where: ColumnElement[bool], **values: Any) -> None:
    with database.write() as tx:
        assert tx.execute(update(table).where(where).values(**values)).rowcount > 0


def expire(database: Database, *expired: Lease) -> None:
    """The leases ended a second ago."""
    ids = [lease.lease_id for lease in expired]
    set_columns(database, chunks, chunks.c.lease_id.in_(ids), lease_until=now_s() - 1)


def silence(database: Database, worker_id: str, silent_s: float) -> None:
    """The worker's last heartbeat is so long ago."""
    set_columns(database, workers, workers.c.id == worker_id, heartbeat_at=now_s() - silent_s)


def expire_submit(database: Database, job_id: str) -> None:
    """The submit's lease ended a second ago."""
    set_columns(database, jobs, jobs.c.id == job_id, submit_lease_until=now_s() - 1)


def pass_deadline(database: Database, job_id: str) -> None:
    """The job's deadline was a second ago."""
    set_columns(database, jobs, jobs.c.id == job_id, deadline_at=now_s() - 1)


# --- at the same time ------------------------------------------------------------------------------------------


class Call(Thread, Generic[Value]):
    """A call in a thread of its own, from now on; one that hangs fails its test, and not the whole run."""

    def __init__(self, function: Callable[[], Value]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._value: list[Value] = []
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value.append(self._function())
        except BaseException as error:
            self._error = error

    def result(self) -> Value:
        """What it returned, once it has; raises what it raised."""
        self.join(_DEADLINE_S)
        assert not self.is_alive(), f"not within {_DEADLINE_S:g} s: {self._function}"
        if self._error is not None:
            raise self._error
        return self._value[0]


def all_at_once(calls: Sequence[Callable[[], Value]]) -> list[Value]:
    """Run each call in a thread of its own, started together; raises what the first of them raised."""
    barrier = Barrier(len(calls))

    def start_together(call: Callable[[], Value]) -> Value:
        barrier.wait(_DEADLINE_S)
        return call()

    running = [Call(partial(start_together, call)) for call in calls]
    return [call.result() for call in running]


class Pause:
    """Holds the first call of a function of `transitions` right after its update, in its open transaction."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self._name = name
        self._real = getattr(transitions, name)
        self._reached = Event()
        self._ended = Event()
        self.num_calls = 0
        monkeypatch.setattr(transitions, name, self._call)

    def _call(self, *arguments: Any, **keywords: Any) -> Any:
        value = self._real(*arguments, **keywords)
        self.num_calls += 1
        if not self._reached.is_set():
            self._reached.set()
            assert self._ended.wait(_DEADLINE_S), f"nobody ended the pause after {self._name}"
        return value

    def wait_reached(self) -> None:
        assert self._reached.wait(_DEADLINE_S), f"{self._name} was not called"

    def end(self) -> None:
        self._ended.set()


def overlap(database: Database, pause: Pause, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
    """Call `first` until its pause, then `second` until it waits for a lock; then let both go on.

    Returns what `second` returned.
    """
    first_call = Call(first)
    try:
        pause.wait_reached()
        second_call = Call(second)
        wait_blocked(database)
    finally:
        pause.end()
    first_call.result()
    return second_call.result()


def wait_blocked(database: Database) -> None:
    """Wait until somebody in this database waits for a lock; SQLite does not tell, there it returns at once."""
    if database.is_sqlite:
        return
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def is_blocked() -> bool:
        with database.read() as tx:
            return bool(tx.execute(waiting).scalar_one())

    wait_until(is_blocked, "somebody waits for a lock", _DEADLINE_S)
