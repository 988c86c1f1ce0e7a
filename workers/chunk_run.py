"""A chunk in flight: three threads meet here, and none of them waits for another's work.

The engine's thread delivers outcomes, which must cost it next to nothing. The writer takes what is finished, about
once a second. The slot's own thread sleeps until everything is delivered, or the chunk has to stop.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import orjson

from db.leases import NewResult
from db.transitions import Lease
from workers.engine import Completion, EngineRequest, Failure

# How often a request goes back to the engine after a failure that may pass.
_MAX_RETRIES = 2


class StopReason(Enum):
    """Why a chunk stops before its last request: the lease is gone, or its rest is to be given back."""

    LEASE_LOST = "lease lost"
    CANCELLED = "job cancelled"
    DRAINING = "worker draining"
    ENGINE_DEAD = "engine dead"


@dataclass(frozen=True)
class Flight:
    """A request on its way through the engine."""

    index: int
    request: EngineRequest
    num_retries: int = 0


class ChunkRun:
    """One leased chunk from its claim to its end."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.stop_reason: StopReason | None = None
        # why its results could not be written, when that was nobody's outage
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._flights: dict[int, Flight] = {}
        self._failed: list[Flight] = []
        self._outcomes: list[Completion | Failure] = []
        self._results: list[NewResult] = []
        self._num_awaited = 0
        self._has_begun = False

    def stop(self, reason: StopReason) -> None:
        """Wake the thread that runs it, to end it. A lost lease or a dead engine overrules the other reasons."""
        if self.stop_reason is None or reason in (StopReason.LEASE_LOST, StopReason.ENGINE_DEAD):
            self.stop_reason = reason
        self._woken.set()

    def fail(self, error: Exception) -> None:
        self.error = error
        self._woken.set()

    def begin(self, results: Sequence[NewResult], flights: Sequence[Flight]) -> None:
        """These failed before the engine, and these are about to be handed to it."""
        with self._lock:
            self._results += results
        self._expect(flights)
        self._has_begun = True

    def _expect(self, flights: Sequence[Flight]) -> None:
        with self._lock:
            self._flights.update((flight.request.key, flight) for flight in flights)
            self._num_awaited += len(flights)
            if self._num_awaited == 0:
                self._woken.set()

    def wait(self, timeout_s: float) -> bool:
        """Until every outcome is delivered, or the run has to stop; False at the timeout."""
        if not self._woken.wait(timeout_s):
            return False
        self._woken.clear()
        return True

    # the engine's thread

    def deliver(self, outcome: Completion | Failure) -> None:
        with self._lock:
            self._outcomes.append(outcome)
            self._num_awaited -= 1
            is_last = self._num_awaited == 0
        if is_last:
            self._woken.set()

    # the writer's thread

    def take(self) -> list[NewResult]:
        """What has finished since the last call; the caller writes it, or nobody does."""
        with self._lock:
            outcomes, self._outcomes = self._outcomes, []
            taken, self._results = self._results, []
        for outcome in outcomes:
            flight = self._flights.pop(outcome.key)
            if isinstance(outcome, Failure) and outcome.is_transient and flight.num_retries < _MAX_RETRIES:
                with self._lock:
                    self._failed.append(flight)
            else:
                taken.append(_new_result(flight, outcome))
        return taken

    @property
    def is_whole(self) -> bool:
        """Whether every result has been taken."""
        return self._has_begun and not (self._flights or self._failed)

    # the slot's thread, once it was woken and the writer is through

    def retry(self, new_key: Callable[[], int]) -> list[EngineRequest]:
        """The requests whose failure may pass, once more, for the engine."""
        with self._lock:
            failed, self._failed = self._failed, []
        again = [
            replace(
                flight, request=replace(flight.request, key=new_key()), num_retries=flight.num_retries + 1
            )
            for flight in failed
        ]
        self._expect(again)
        return [flight.request for flight in again]

    def unfinished(self) -> list[int]:
        """The keys of what the engine still has."""
        return list(self._flights)


def _new_result(flight: Flight, outcome: Completion | Failure) -> NewResult:
    index, num_retries = flight.index, flight.num_retries
    if isinstance(outcome, Failure):
        return NewResult(
            index, error_code="engine_error", error_message=outcome.message, num_retries=num_retries
        )
    result = {"response": outcome.text} if outcome.pieces is None else _event_stream(outcome.pieces)
    return NewResult(
        index,
        result=orjson.dumps(result).decode(),
        finish_reason=outcome.finish_reason,
        prompt_tokens=outcome.num_prompt_tokens,
        completion_tokens=outcome.num_completion_tokens,
        num_retries=num_retries,
    )


def _event_stream(pieces: Sequence[str]) -> str:
    """The card's other output form: one event for each piece that the engine produced."""
    events = [f"data: {orjson.dumps({'response': piece}).decode()}\n\n" for piece in pieces]
    return "".join(events) + "data: [DONE]\n\n"
