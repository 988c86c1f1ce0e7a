"""An engine that repeats the prompt: deterministic, with a settable latency, for load and fault tests."""

import heapq
import time
from collections import deque
from collections.abc import Sequence

from jobs.cards import Limits
from jobs.generation import Generation
from jobs.rendering import Rendered, check_limits
from jobs.schema import Problem
from workers.engine import Completion, EngineRequest, Failure

_MAX_SLEEP_S = 0.05


class EchoEngine:
    """A token is a word. The completion is the prompt's last message, cut off after max_tokens words."""

    def __init__(self, num_seqs: int, latency_s: float) -> None:
        self._num_seqs = num_seqs
        self._latency_s = latency_s
        self._waiting: deque[EngineRequest] = deque()
        self._running: dict[int, EngineRequest] = {}
        self._due: list[tuple[float, int]] = []

    @property
    def label(self) -> str:
        return "echo"

    @property
    def num_seqs(self) -> int:
        return self._num_seqs

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + len(self._running)

    def render(self, generations: Sequence[Generation], limits: Limits) -> list[Rendered | Problem]:
        return [check_limits(one, _render(one), limits) for one in generations]

    def add(self, request: EngineRequest) -> None:
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
                finished.append(_complete(due))
        if not finished and self._due:
            time.sleep(min(self._due[0][0] - now, _MAX_SLEEP_S))
        return finished

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
    return Completion(
        key=request.key,
        text="".join(pieces),
        pieces=pieces if request.stream else None,
        finish_reason="stop" if len(kept) == len(words) else "length",
        num_prompt_tokens=len(words),
        num_completion_tokens=len(kept),
    )
