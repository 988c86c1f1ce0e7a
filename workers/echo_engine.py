"""An engine that repeats the prompt: deterministic, with a settable latency, for load and fault tests.

A prompt that is one of these words alone injects a fault when it runs:
  !kill    the process is killed, as by the system when memory is short
  !die     the engine dies, and the process lives
  !refuse  the engine refuses the request
  !flaky   the request fails twice in a way that may pass, and then succeeds
"""

import heapq
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from db.errors import EngineError
from jobs.cards import Limits
from jobs.generation import Generation
from jobs.rendering import Rendered, check_limits
from jobs.schema import Problem
from workers.engine import Choice, Completion, EngineRequest, Failure, RequestRefusedError

_MAX_SLEEP_S = 0.05
_NUM_FLAKY = 2


class EchoEngine:
    """A token is a word. The completion is the prompt's last message, cut off after max_tokens words."""

    def __init__(self, num_seqs: int, latency_s: float) -> None:
        self._num_seqs = num_seqs
        self._latency_s = latency_s
        self._waiting: deque[EngineRequest] = deque()
        self._running: dict[int, EngineRequest] = {}
        self._due: list[tuple[float, int]] = []
        self._num_flaky = 0

    @property
    def label(self) -> str:
        return "echo"

    @property
    def details(self) -> dict[str, Any]:
        return {"name": "echo", "arguments": {"num_seqs": self._num_seqs, "latency_s": self._latency_s}}

    @property
    def num_seqs(self) -> int:
        return self._num_seqs

    @property
    def max_num_batched_tokens(self) -> int:
        return sys.maxsize  # it computes nothing

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def is_dead(self) -> bool:
        return False

    def render(self, generations: Sequence[Generation], limits: Limits) -> list[Rendered | Problem]:
        return [check_limits(one, _render(one), limits) for one in generations]

    def add(self, request: EngineRequest) -> None:
        if request.prompt.text == "!refuse":
            raise RequestRefusedError("it was told to")
        self._waiting.append(request)

    def abort(self, keys: Sequence[int]) -> None:
        gone = set(keys)
        self._waiting = deque(request for request in self._waiting if request.key not in gone)
        for key in gone:
            self._running.pop(key, None)

    def step(self) -> list[Completion | Failure]:
        now = time.monotonic()
        while self._waiting and len(self._running) < self._num_seqs:
            request = self._waiting.popleft()
            self._running[request.key] = request
            heapq.heappush(self._due, (now + self._latency_s, request.key))
        finished: list[Completion | Failure] = []
        while self._due and self._due[0][0] <= now:
            due = self._running.pop(heapq.heappop(self._due)[1], None)
            if due is not None:
                finished.append(self._finish(due))
        if not finished and self._due:
            time.sleep(min(self._due[0][0] - now, _MAX_SLEEP_S))
        return finished

    def _finish(self, request: EngineRequest) -> Completion | Failure:
        text = request.prompt.text
        if text == "!kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "!die":
            raise EngineError("it was told to")
        if text == "!flaky" and self._num_flaky < _NUM_FLAKY:
            self._num_flaky += 1
            return Failure(request.key, "it may pass", is_transient=True)
        return _complete(request)

    def close(self) -> None:
        self.abort(list(self._running) + [request.key for request in self._waiting])


def _render(generation: Generation) -> Rendered:
    text = generation.prompt
    if text is None:
        text = str(generation.messages[-1]["content"]) if generation.messages else ""
    return Rendered(text, list(range(len(text.split()))))


def _complete(request: EngineRequest) -> Completion:
    words = request.prompt.text.split()
    kept = words[: request.max_tokens]
    pieces = tuple(f" {word}" if number else word for number, word in enumerate(kept))
    text = "".join(pieces)
    finish_reason = "stop" if len(kept) == len(words) else "length"
    logprobs: list[dict[str, Any]] | None = None
    if "logprobs" in request.sampling:
        logprobs = [{"token": piece, "logprob": 0.0, "bytes": None, "top_logprobs": []} for piece in pieces]
    num_others = request.num_choices - 1
    return Completion(
        key=request.key,
        text=text,
        pieces=pieces if request.stream else None,
        finish_reason=finish_reason,
        num_prompt_tokens=len(words),
        num_completion_tokens=len(kept) * request.num_choices,
        logprobs=logprobs,
        others=tuple(Choice(text, finish_reason, logprobs) for _ in range(num_others)),
    )
