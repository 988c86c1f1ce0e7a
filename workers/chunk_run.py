"""A chunk in flight: three threads meet here, and none of them waits for another's work.

The engine's thread delivers outcomes, which must cost it next to nothing. The writer takes what is finished, about
once a second. The slot's own thread sleeps until everything is delivered, or the chunk has to stop.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import orjson

from db.leases import NewResult
from db.transitions import Lease
from jobs.tools import ToolUse, split_calls
from workers.engine import Choice, Completion, EngineRequest, Failure

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
    """A request on its way through the engine; `content_key` where asking again would ask for the same."""

    index: int
    request: EngineRequest
    num_retries: int = 0
    content_key: str | None = None


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
        # to be handed to the engine by the slot's thread
        self._due: list[Flight] = []
        # what another request of the job generates, by content key
        self._twins: dict[str, list[Flight]] = {}
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

    def begin(
        self, results: Sequence[NewResult], flights: Sequence[Flight], twins: Sequence[Flight] = ()
    ) -> None:
        """Results that need no engine, requests that are about to be handed to it, and those that wait for another
        request's result."""
        with self._lock:
            self._results += results
            for twin in twins:
                self._twins.setdefault(twin.content_key or "", []).append(twin)
            self._expect(flights)
            self._has_begun = True
            if self._num_awaited == 0:
                self._woken.set()

    def _expect(self, flights: Sequence[Flight]) -> None:
        self._flights.update((flight.request.key, flight) for flight in flights)
        self._num_awaited += len(flights)

    def wait(self, timeout_s: float) -> bool:
        """Until the engine has delivered every outcome, something is due, or the run has to stop; False at the
        timeout."""
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
                    self._due.append(replace(flight, num_retries=flight.num_retries + 1))
            else:
                taken.append(_new_result(flight, outcome))
        return taken

    @property
    def is_whole(self) -> bool:
        """Whether every result has been taken."""
        with self._lock:
            return self._has_begun and not (self._flights or self._due or self._twins or self._results)

    def awaited(self) -> dict[str, int]:
        """The content keys that other requests generate, each with an index of this chunk that waits for it."""
        with self._lock:
            return {key: twins[0].index for key, twins in self._twins.items()}

    def answer(self, key: str, result: NewResult) -> None:
        """What was awaited is there: `result` for each twin."""
        with self._lock:
            self._results += [replace(result, index=twin.index) for twin in self._twins.pop(key, [])]
            if not (self._num_awaited or self._twins):
                self._woken.set()

    def generate(self, key: str, num_twins: int | None = None) -> None:
        """What was awaited will not come: so many twins go to the engine, and the rest goes on waiting; all by
        default."""
        with self._lock:
            twins = self._twins.pop(key, [])
            self._due += twins[:num_twins]
            if num_twins is not None and twins[num_twins:]:
                self._twins[key] = twins[num_twins:]
            self._woken.set()

    # the slot's thread, once it was woken and the writer is through

    def take_due(self, new_key: Callable[[], int]) -> list[EngineRequest]:
        """For the engine: requests whose failure may pass, once more, and those whose twin was not generated."""
        with self._lock:
            due = [replace(one, request=replace(one.request, key=new_key())) for one in self._due]
            self._due.clear()
            self._expect(due)
        return [flight.request for flight in due]

    def unfinished(self) -> list[int]:
        """The keys of what the engine still has."""
        return list(self._flights)


def _new_result(flight: Flight, outcome: Completion | Failure) -> NewResult:
    index, num_retries = flight.index, flight.num_retries
    if isinstance(outcome, Failure):
        return NewResult(
            index,
            error_code=outcome.code,
            error_message=outcome.message,
            num_retries=num_retries,
            content_key=flight.content_key,
        )
    if outcome.pieces is None:
        result: object = result_of(outcome, flight.request.tools)
    else:
        result = _event_stream(outcome.pieces)
    return NewResult(
        index,
        result=orjson.dumps(result).decode(),
        finish_reason=outcome.finish_reason,
        prompt_tokens=outcome.num_prompt_tokens,
        completion_tokens=outcome.num_completion_tokens,
        num_retries=num_retries,
        content_key=flight.content_key,
    )


def result_of(completion: Completion, tools: ToolUse | None) -> dict[str, Any]:
    """A result's JSON: the first completion, and with several all of them under `choices`."""
    first = _said(completion, tools)
    if not completion.others:
        return first
    choices: list[Completion | Choice] = [completion, *completion.others]
    return {
        **first,
        "choices": [
            {"index": number, "finish_reason": one.finish_reason, **_said(one, tools)}
            for number, one in enumerate(choices)
        ],
    }


def _said(choice: Completion | Choice, tools: ToolUse | None) -> dict[str, Any]:
    said: dict[str, Any] = {"response": choice.text}
    if tools is not None:
        said["response"], calls = split_calls(choice.text, tools)
        if calls:
            said["tool_calls"] = calls
    if choice.logprobs is not None:
        said["logprobs"] = {"content": choice.logprobs}
    return said


def _event_stream(pieces: Sequence[str]) -> str:
    """The card's other output form: one event for each piece that the engine produced."""
    events = [f"data: {orjson.dumps({'response': piece}).decode()}\n\n" for piece in pieces]
    return "".join(events) + "data: [DONE]\n\n"
