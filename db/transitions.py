"""The only writer of state columns: one function an arrow of `states`, each one guarded UPDATE.

An update that matches no row wrote nothing, and says why: NotFoundError, WrongStateError (with the state
found and those expected), or LeaseLostError where the arrow needs a lease.

Lock order, always: the jobs' rows, by their ids, then their chunks, by theirs. `lock_job` is called first by
whatever writes results, may close the job or puts a chunk back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    delete,
    func,
    insert,
    select,
    update,
)

from db.errors import (
    LeaseLostError,
    NotFoundError,
    PromptmillError,
    WrongStateError,
    job_in_wrong_state,
    no_such_job,
)
from db.states import (
    CHUNK_ARROWS,
    CLAIMABLE_STATES,
    JOB_ARROWS,
    WORKER_ARROWS,
    Arrow,
    InputFormat,
    JobState,
    WorkerState,
)
from db.tables import (
    HAS_ALL_RESULTS,
    HAS_RUNNING_CHUNK,
    IS_RUNNING,
    chunks,
    generations,
    job_labels,
    job_workers,
    jobs,
    now_s,
    requests,
    results,
    workers,
)

_NO_LEASE = {"lease_id": None, "lease_until": None, "worker_id": None, "is_alone": False}


@dataclass(frozen=True)
class Lease:
    """The right to write one chunk's results; `lease_id` is the fence. `priority` is the job's."""

    lease_id: str
    chunk_id: int
    job_id: str
    first_index: int
    num_requests: int
    attempt: int
    is_suspect: bool = False
    is_alone: bool = False
    priority: int = 0


LEASE_COLUMNS = (
    chunks.c.lease_id,
    chunks.c.id,
    chunks.c.job_id,
    chunks.c.first_index,
    chunks.c.num_requests,
    chunks.c.attempt,
    chunks.c.is_suspect,
    chunks.c.is_alone,
)


@dataclass(frozen=True)
class Tally:
    """Sums over results. `num_reused` of the succeeded ones were not generated, and their tokens do not count."""

    num_succeeded: int = 0
    num_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_reused: int = 0

    @property
    def num_results(self) -> int:
        return self.num_succeeded + self.num_failed

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


_NONE = Tally()


@dataclass(frozen=True)
class Part:
    """A part of a chunk that is split: its range and the sums over the results that it has already."""

    first_index: int
    num_requests: int
    tally: Tally


@dataclass(frozen=True)
class NewJob:
    """What a submit knows of its job before it reads the first line; `sampling` and `selection` are JSON text."""

    id: str
    card_name: str
    card_sha256: str
    card: str
    input_name: str
    name: str | None = None
    priority: int = 0
    deadline_s: float | None = None
    sampling: str | None = None
    selection: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    # of a job that runs requests of others again: their ids, the first one first and its parent last
    ancestors: tuple[str, ...] = ()
    is_reusing: bool = False


def _move(
    tx: Connection,
    table: Table,
    what: str,
    key: Any,
    arrow: Arrow[Any],
    *guards: ColumnElement[bool],
    **values: Any,
) -> None:
    moved = tx.execute(
        update(table)
        .where(table.c.id == key, table.c.state.in_(arrow.sources), *guards)
        .values(state=arrow.target, **values)
    )
    if moved.rowcount == 0:
        raise _refusal(tx, table, what, key, arrow)


def _refusal(tx: Connection, table: Table, what: str, key: Any, arrow: Arrow[Any]) -> PromptmillError:
    state = tx.execute(select(table.c.state).where(table.c.id == key)).scalar()
    if state is None:
        return no_such_job(key) if what == "job" else NotFoundError(f"there is no {what} {key}")
    if state in arrow.sources:
        return LeaseLostError(f"the lease on {what} {key} has passed to somebody else")
    if what == "job":
        return job_in_wrong_state(key, state, frozenset(arrow.sources))
    return WrongStateError(f"{what} {key}", state, frozenset(arrow.sources))


# --- jobs -----------------------------------------------------------------------------------------------------


def stage_job(tx: Connection, job: NewJob, submit_lease_s: float) -> None:
    """(new) -> validating: a job that only its submit sees."""
    tx.execute(
        insert(jobs).values(
            id=job.id,
            name=job.name,
            state=JobState.VALIDATING,
            priority=job.priority,
            card_name=job.card_name,
            card_sha256=job.card_sha256,
            card=job.card,
            input_name=job.input_name,
            sampling=job.sampling,
            selection=job.selection,
            root_id=job.ancestors[0] if job.ancestors else None,
            ancestors=" ".join(job.ancestors) or None,
            is_reusing=job.is_reusing,
            created_at=now_s(),
            submit_lease_until=now_s() + submit_lease_s,
            deadline_at=None if job.deadline_s is None else now_s() + job.deadline_s,
        )
    )
    if job.labels:
        created_at = select(jobs.c.created_at).where(jobs.c.id == job.id).scalar_subquery()
        tx.execute(
            insert(job_labels).values(created_at=created_at),
            [{"job_id": job.id, "key": key, "value": value} for key, value in job.labels.items()],
        )


def renew_submit(tx: Connection, job_id: str, submit_lease_s: float) -> None:
    """Keep a validating job from the sweeper. In every transaction that adds lines, so that a submit that slept past
    its lease adds none: then LeaseLostError."""
    renewed = tx.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == JobState.VALIDATING, _submit_lives())
        .values(submit_lease_until=now_s() + submit_lease_s)
    )
    if renewed.rowcount == 0:
        raise LeaseLostError(
            "this submit paused for longer than its lease and was cleared away; submit again"
        )


def abandon_job(tx: Connection, job_id: str) -> None:
    """validating -> deleting: its submit, should it still live, can neither add to it nor make it visible."""
    _move(tx, jobs, "job", job_id, JOB_ARROWS["abandon"], submit_lease_until=None)


def delete_job(tx: Connection, job_id: str) -> None:
    """completed, cancelled or expired -> deleting: invisible at once; `erase_rows` does the rest."""
    _move(tx, jobs, "job", job_id, JOB_ARROWS["delete"], finished_at=None, idempotency_key=None)


def retry_job(tx: Connection, job_id: str, taken: Tally = _NONE) -> None:
    """completed -> queued, without the failed results that this transaction takes back. The deadline was for the time
    before: with it the job would expire at once."""
    lowered = _lowered(jobs, taken)
    _move(tx, jobs, "job", job_id, JOB_ARROWS["retry"], finished_at=None, deadline_at=None, **lowered)


def _submit_lives() -> ColumnElement[bool]:
    return jobs.c.submit_lease_until > now_s()


def enqueue_job(
    tx: Connection,
    job_id: str,
    *,
    num_requests: int,
    num_failed: int,
    input_sha256: str,
    idempotency_key: str | None,
    input_format: InputFormat = InputFormat.CARD,
) -> None:
    """validating -> queued: the job is whole and visible from here on. `num_failed` lines were bad, and kept.

    Raises sqlalchemy's IntegrityError when another job took the idempotency key first.
    """
    _move(
        tx,
        jobs,
        "job",
        job_id,
        JOB_ARROWS["enqueue"],
        _submit_lives(),
        num_requests=num_requests,
        num_failed=num_failed,
        input_sha256=input_sha256,
        idempotency_key=idempotency_key,
        input_format=input_format,
        submit_lease_until=None,
    )


def start_job(tx: Connection, job_id: str) -> None:
    """queued -> in_progress, at the first claim; it started then, however often it is queued again."""
    started_at = func.coalesce(jobs.c.started_at, now_s())
    _move(tx, jobs, "job", job_id, JOB_ARROWS["start"], started_at=started_at)


def complete_job(tx: Connection, job_id: str) -> None:
    """queued or in_progress -> completed; refused while a request has no result."""
    _move(tx, jobs, "job", job_id, JOB_ARROWS["complete"], HAS_ALL_RESULTS, finished_at=now_s())


def cancel_job(tx: Connection, job_id: str) -> None:
    """queued or in_progress -> cancelling: nothing more is claimed, and chunks that run end by themselves."""
    _move(tx, jobs, "job", job_id, JOB_ARROWS["cancel"])


def end_cancel_job(tx: Connection, job_id: str) -> None:
    """cancelling -> cancelled; refused while a chunk runs."""
    _move(tx, jobs, "job", job_id, JOB_ARROWS["end_cancel"], ~HAS_RUNNING_CHUNK, finished_at=now_s())


def expire_job(tx: Connection, job_id: str) -> None:
    """queued or in_progress -> expired, past its deadline by the database's clock.

    Chunks that run are dropped with it: their leases end, and later writes are refused.
    """
    is_over = jobs.c.deadline_at < now_s()
    _move(tx, jobs, "job", job_id, JOB_ARROWS["expire"], is_over, finished_at=now_s())
    drop = CHUNK_ARROWS["drop"]
    is_running = (chunks.c.job_id == job_id) & IS_RUNNING
    lock_chunks(tx, is_running)
    tx.execute(update(chunks).where(is_running).values(state=drop.target, **_NO_LEASE))


def lock_chunks(tx: Connection, which: ColumnElement[bool]) -> None:
    """Take running chunks by their ids, as whoever changes several of them must: an update takes them in any
    order, and two such (a renewal and a deadline) could wait for each other."""
    tx.execute(select(chunks.c.id).where(which).order_by(chunks.c.id).with_for_update()).all()


def lock_job(tx: Connection, job_id: str) -> JobState:
    """Take the job's row until the transaction ends, and say its state (SQLite: the write lock is held already)."""
    statement = select(jobs.c.state).where(jobs.c.id == job_id).with_for_update(key_share=True)
    state = tx.execute(statement).scalar()
    if state is None:
        raise no_such_job(job_id)
    return JobState(state)


def close_job_if_over(tx: Connection, job_id: str, state: JobState) -> JobState:
    """Complete a job that has all its results, or end the cancel of one with no chunk running; the caller holds
    `lock_job`, which told the state."""

    def holds(condition: ColumnElement[bool]) -> bool:
        return tx.execute(select(jobs.c.id).where(jobs.c.id == job_id, condition)).scalar() is not None

    if state in CLAIMABLE_STATES and holds(HAS_ALL_RESULTS):
        complete_job(tx, job_id)
        return JobState.COMPLETED
    if state is JobState.CANCELLING and holds(~HAS_RUNNING_CHUNK):
        end_cancel_job(tx, job_id)
        return JobState.CANCELLED
    return state


def count_results(tx: Connection, job_id: str, tally: Tally) -> tuple[int, int]:
    """Add results that this transaction writes to the job's sums; the position of the first of them, and how many
    requests have none yet. The caller holds `lock_job`."""
    num_results = jobs.c.num_succeeded + jobs.c.num_failed
    counted = update(jobs).where(jobs.c.id == job_id).values(_raised(jobs, tally))
    told = counted.returning(num_results + jobs.c.num_retried, jobs.c.num_requests - num_results)
    last_position, num_left = tx.execute(told).one()
    return int(last_position) - tally.num_results + 1, int(num_left)


def uncount_results(tx: Connection, job_id: str, taken: Tally) -> None:
    """`retry_job` for a job that is queued or in progress already: no move. The caller holds `lock_job`."""
    tx.execute(update(jobs).where(jobs.c.id == job_id).values(_lowered(jobs, taken)))


def _raised(table: Table, tally: Tally) -> dict[str, Any]:
    return {name: table.c[name] + value for name, value in asdict(tally).items()}


def _lowered(table: Table, taken: Tally) -> dict[str, Any]:
    values = {name: table.c[name] - value for name, value in asdict(taken).items()}
    if table is jobs:
        values["num_retried"] = jobs.c.num_retried + taken.num_results
    return values


def take_back(
    tx: Connection, job_id: str, first_index: int, num_requests: int, error_codes: Sequence[str]
) -> Tally:
    """Delete the failed results with one of these codes in a range of a job's requests, and sum them up; a bad line's
    stays, which has no request to run. The caller holds `lock_job`, and corrects the sums of job and chunk."""

    def is_in_range(table: Table) -> ColumnElement[bool]:
        return (table.c.job_id == job_id) & table.c.index.between(first_index, first_index + num_requests - 1)

    can_run = select(requests.c.index).where(is_in_range(requests), requests.c.body.is_not(None))
    taken = tx.execute(
        delete(results)
        .where(is_in_range(results), results.c.error_code.in_(error_codes), results.c.index.in_(can_run))
        .returning(results.c.prompt_tokens, results.c.completion_tokens)
    ).all()
    return Tally(
        num_failed=len(taken),
        prompt_tokens=sum(row.prompt_tokens or 0 for row in taken),
        completion_tokens=sum(row.completion_tokens or 0 for row in taken),
    )


def erase_rows(tx: Connection, job_id: str, limit: int) -> bool:
    """Delete up to `limit` requests of a deleting job with what there is of them; False when none was left."""
    first = tx.execute(select(func.min(requests.c.index)).where(requests.c.job_id == job_id)).scalar()
    if first is None:
        return False
    for table in (generations, results, requests):
        tx.execute(
            delete(table).where(
                table.c.job_id == job_id,
                table.c.index >= first,
                table.c.index < first + limit,
            )
        )
    # Not the number deleted: that is 0 when another sweeper was faster, whatever is left behind these rows.
    return True


def erase_job(tx: Connection, job_id: str) -> bool:
    """Delete a deleting job, after `erase_rows` said False. False when it is gone already;
    a job in any other state stays."""
    state = tx.execute(select(jobs.c.state).where(jobs.c.id == job_id).with_for_update()).scalar()
    if state is None:
        return False
    if state != JobState.DELETING:
        raise WrongStateError(f"job {job_id}", state, frozenset({JobState.DELETING}))
    for table in (chunks, job_workers, job_labels):
        tx.execute(delete(table).where(table.c.job_id == job_id))
    tx.execute(delete(jobs).where(jobs.c.id == job_id))
    return True


# --- chunks ---------------------------------------------------------------------------------------------------


def claim_chunk(tx: Connection, chunk_id: int, worker_id: str, lease_s: float, lease_id: str) -> Lease:
    """queued -> running under a lease of this id, which no other has had; counts the attempt."""
    arrow = CHUNK_ARROWS["claim"]
    claimed = tx.execute(
        update(chunks)
        .where(chunks.c.id == chunk_id, chunks.c.state.in_(arrow.sources))
        .values(
            state=arrow.target,
            lease_id=lease_id,
            lease_until=now_s() + lease_s,
            worker_id=worker_id,
            attempt=chunks.c.attempt + 1,
            started_at=now_s(),
        )
        .returning(*LEASE_COLUMNS)
    ).one_or_none()
    if claimed is None:
        raise _refusal(tx, chunks, "chunk", chunk_id, arrow)
    return lease_of(claimed)


def lease_of(row: Row[Any]) -> Lease:
    """The lease in `LEASE_COLUMNS` of a running chunk; its job's priority may follow."""
    return Lease(*row)


def _move_leased(
    tx: Connection, lease: Lease, arrow: str, *guards: ColumnElement[bool], **values: Any
) -> None:
    _move(
        tx,
        chunks,
        "chunk",
        lease.chunk_id,
        CHUNK_ARROWS[arrow],
        chunks.c.lease_id == lease.lease_id,
        *guards,
        **_NO_LEASE,
        **values,
    )


def record_chunk(tx: Connection, lease: Lease, tally: Tally) -> None:
    """No move: add results that this transaction writes to a running chunk's sums."""
    mine = (chunks.c.id == lease.chunk_id) & (chunks.c.lease_id == lease.lease_id)
    if tx.execute(update(chunks).where(mine).values(_raised(chunks, tally))).rowcount == 0:
        raise LeaseLostError(f"the lease on chunk {lease.chunk_id} has passed to somebody else")


def finish_chunk(tx: Connection, lease: Lease, tally: Tally = _NONE) -> None:
    """running -> done, with its last results; the CHECK refuses it unless every request has one."""
    _move_leased(tx, lease, "finish", finished_at=now_s(), **_raised(chunks, tally))


def release_chunk(tx: Connection, lease: Lease) -> None:
    """running -> queued, by the worker itself: it was not the chunk's fault, so the attempt does not count."""
    _move_leased(tx, lease, "release", attempt=chunks.c.attempt - 1)


def requeue_chunk(tx: Connection, lease: Lease) -> None:
    """running -> queued, after its worker's death; the attempt counts. The caller knows of the death."""
    _move_leased(tx, lease, "requeue")


def retry_chunk(tx: Connection, chunk_id: int, taken: Tally) -> None:
    """done -> queued, without the failed results that this transaction takes back. Its attempts begin anew; a suspect
    stays one, since what killed its worker while it ran alone should be alone again."""
    lowered = _lowered(chunks, taken)
    _move(tx, chunks, "chunk", chunk_id, CHUNK_ARROWS["retry"], attempt=0, finished_at=None, **lowered)


def split_chunk(tx: Connection, lease: Lease, parts: Sequence[Part]) -> None:
    """running -> queued, as suspects: the chunk keeps the first of `parts`, the others become chunks of their own.

    The parts follow each other and cover the chunk; each has a request without a result.
    """
    first, *others = (
        {"first_index": part.first_index, "num_requests": part.num_requests, **asdict(part.tally)}
        for part in parts
    )
    _move_leased(tx, lease, "split", is_suspect=True, **first)
    if others:
        tx.execute(
            insert(chunks),
            [
                {
                    **part,
                    "job_id": lease.job_id,
                    "state": CHUNK_ARROWS["split"].target,
                    "attempt": lease.attempt,
                    "is_suspect": True,
                }
                for part in others
            ],
        )


def isolate_chunk(tx: Connection, lease: Lease) -> None:
    """Mark that a suspect runs alone in its worker from now on: no move, but only the lease's holder may."""
    marked = tx.execute(
        update(chunks)
        .where(chunks.c.id == lease.chunk_id, chunks.c.lease_id == lease.lease_id, chunks.c.is_suspect)
        .values(is_alone=True)
    )
    if marked.rowcount == 0:
        raise LeaseLostError(f"the lease on chunk {lease.chunk_id} has passed to somebody else")


# --- workers --------------------------------------------------------------------------------------------------


def register_worker(tx: Connection, worker_id: str, card_name: str, engine: str, host: str, pid: int) -> None:
    """(new) -> starting."""
    tx.execute(
        insert(workers).values(
            id=worker_id,
            state=WorkerState.STARTING,
            card_name=card_name,
            engine=engine,
            host=host,
            pid=pid,
            started_at=now_s(),
            heartbeat_at=now_s(),
        )
    )


def ready_worker(tx: Connection, worker_id: str, details: str | None = None) -> None:
    """starting -> ready, or gone -> ready when a frozen worker wakes, whose `details` stay (JSON text)."""
    told = {} if details is None else {"details": details}
    _move(tx, workers, "worker", worker_id, WORKER_ARROWS["ready"], heartbeat_at=now_s(), **told)


def drain_worker(tx: Connection, worker_id: str) -> None:
    """It claims nothing more."""
    _move(tx, workers, "worker", worker_id, WORKER_ARROWS["drain"], heartbeat_at=now_s())


def stop_worker(tx: Connection, worker_id: str) -> None:
    """It has given back what it held."""
    _move(tx, workers, "worker", worker_id, WORKER_ARROWS["stop"], heartbeat_at=now_s())


def lose_worker(tx: Connection, worker_id: str, silent_s: float) -> None:
    """-> gone, by the sweeper, after `silent_s` without a heartbeat."""
    _move(
        tx,
        workers,
        "worker",
        worker_id,
        WORKER_ARROWS["lose"],
        workers.c.heartbeat_at < now_s() - silent_s,
    )
