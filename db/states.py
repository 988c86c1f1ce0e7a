"""The states of jobs, chunks and workers, and every arrow between them: the one table.

Job
  validating    a submit is writing the file's lines; nobody else sees the job yet. A crash leaves it for the
                sweeper, which deletes it once the submit's lease is over.
  queued        whole and visible; no chunk has been claimed yet.
  in_progress   a chunk has been claimed at least once. Crashes of workers leave it here.
  cancelling    somebody asked to cancel; chunks that run may still write what they finished.
  completed, cancelled, expired   over: no chunk runs, no lease lives. Requests without a result came to what the
                job came to: a cancel and a deadline touch one row, however many are left. A completed job is queued
                again when failed results of it are taken back (retry).
  deleting      on its way out, step by step, and invisible: a submit that was given up, or a job that somebody
                deleted. A crash leaves it here, and the sweeper deletes on.

Chunk
  queued        can be claimed while its job is queued or in_progress. It gets here from submit, from its worker
                (release), from the sweeper (requeue), or because its job's deadline passed while it ran (drop).
  running       leased: `lease_id` names the one worker that may write, until `lease_until` by the database's clock.
  done          every request has a result. It is queued again when failed ones are taken back (retry).

  A chunk whose worker died often becomes suspect: it is split, and each part runs alone in its worker, so that the
  next death names the guilty part. A single request whose worker died while it ran alone fails.

Worker
  starting, ready, draining, stopped   its own word.
  gone          the sweeper's word: no heartbeat for some lease times. A frozen worker that wakes returns to ready.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar


class JobState(StrEnum):
    VALIDATING = "validating"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DELETING = "deleting"

    @property
    def is_final(self) -> bool:
        return self in (JobState.COMPLETED, JobState.CANCELLED, JobState.EXPIRED)

    @property
    def is_visible(self) -> bool:
        return self not in (JobState.VALIDATING, JobState.DELETING)


FINAL_STATES = frozenset(state.value for state in JobState if state.is_final)


# A chunk of these can be claimed.
CLAIMABLE_STATES = (JobState.QUEUED, JobState.IN_PROGRESS)


class ChunkState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class WorkerState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    GONE = "gone"


ALIVE_STATES = (WorkerState.STARTING, WorkerState.READY, WorkerState.DRAINING)


class InputFormat(StrEnum):
    """The dialect that a job's lines came in."""

    CARD = "card"
    OPENAI = "openai"
    CLOUDFLARE = "cloudflare"
    ARRAY = "array"
    CSV = "csv"
    PARQUET = "parquet"


class ResultStatus(StrEnum):
    """What a request can come to. `cancelled` and `expired` are never stored: they are requests without a result
    in a job of that state."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


State = TypeVar("State", bound=StrEnum)


@dataclass(frozen=True)
class Arrow(Generic[State]):
    """One legal move: from any of `sources` to `target`."""

    name: str
    sources: frozenset[State]
    target: State


def _table(*rows: tuple[str, set[State], State]) -> dict[str, Arrow[State]]:
    return {name: Arrow(name, frozenset(sources), target) for name, sources, target in rows}


_J, _C, _W = JobState, ChunkState, WorkerState

JOB_ARROWS = _table(
    ("enqueue", {_J.VALIDATING}, _J.QUEUED),
    ("start", {_J.QUEUED}, _J.IN_PROGRESS),
    # straight from queued when every line of a job submitted with --on-invalid skip was bad
    ("complete", {_J.QUEUED, _J.IN_PROGRESS}, _J.COMPLETED),
    ("cancel", {_J.QUEUED, _J.IN_PROGRESS}, _J.CANCELLING),
    ("end_cancel", {_J.CANCELLING}, _J.CANCELLED),
    # at once, running chunks included: what was not written by then did not make the deadline
    ("expire", {_J.QUEUED, _J.IN_PROGRESS}, _J.EXPIRED),
    ("abandon", {_J.VALIDATING}, _J.DELETING),
    ("delete", {_J.COMPLETED, _J.CANCELLED, _J.EXPIRED}, _J.DELETING),
    # A cancelled or expired job stays over: its requests that never ran would run too, and have their positions
    # behind all results already. `rerun` makes a new job of them.
    ("retry", {_J.COMPLETED}, _J.QUEUED),
)

CHUNK_ARROWS = _table(
    ("claim", {_C.QUEUED}, _C.RUNNING),
    ("finish", {_C.RUNNING}, _C.DONE),
    ("release", {_C.RUNNING}, _C.QUEUED),
    ("requeue", {_C.RUNNING}, _C.QUEUED),
    ("split", {_C.RUNNING}, _C.QUEUED),
    ("drop", {_C.RUNNING}, _C.QUEUED),
    ("retry", {_C.DONE}, _C.QUEUED),
)

WORKER_ARROWS = _table(
    ("ready", {_W.STARTING, _W.GONE}, _W.READY),
    ("drain", {_W.STARTING, _W.READY, _W.GONE}, _W.DRAINING),
    ("stop", {_W.STARTING, _W.READY, _W.DRAINING, _W.GONE}, _W.STOPPED),
    ("lose", {_W.STARTING, _W.READY, _W.DRAINING}, _W.GONE),
)
