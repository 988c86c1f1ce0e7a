"""The states of jobs, chunks and workers, and every arrow between them: the one table.

Job
  validating    a submit is writing the file's lines; nobody else sees the job yet. A crash leaves it for the
                sweeper, which deletes it once the submit's lease is over.
  queued        whole and visible; no chunk has been claimed yet.
  in_progress   a chunk has been claimed at least once. Crashes of workers leave it here.
  cancelling    somebody asked to cancel; chunks that run may still write what they finished.
  completed, cancelled   over: no chunk is queued or running, no lease lives.

Chunk
  queued        can be claimed. It gets here from submit, from its worker (release) or from the sweeper (requeue).
  running       leased: `lease_id` names the one worker that may write, until `lease_until` by the database's clock.
  done          every request has a result.
  cancelled     its job was cancelled; requests without a result count as cancelled.

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

    @property
    def is_final(self) -> bool:
        return self in (JobState.COMPLETED, JobState.CANCELLED)


class ChunkState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


class WorkerState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    GONE = "gone"


class ResultStatus(StrEnum):
    """What a request can come to. `cancelled` is never stored: it is a request of a cancelled chunk
    that has no result. `expired` belongs to deadlines, which no job has yet."""

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
)

CHUNK_ARROWS = _table(
    ("claim", {_C.QUEUED}, _C.RUNNING),
    ("finish", {_C.RUNNING}, _C.DONE),
    ("release", {_C.RUNNING}, _C.QUEUED),
    ("requeue", {_C.RUNNING}, _C.QUEUED),
    ("cancel", {_C.QUEUED, _C.RUNNING}, _C.CANCELLED),
)

WORKER_ARROWS = _table(
    ("ready", {_W.STARTING, _W.GONE}, _W.READY),
    ("drain", {_W.STARTING, _W.READY, _W.GONE}, _W.DRAINING),
    ("stop", {_W.STARTING, _W.READY, _W.DRAINING, _W.GONE}, _W.STOPPED),
    ("lose", {_W.STARTING, _W.READY, _W.DRAINING}, _W.GONE),
)
