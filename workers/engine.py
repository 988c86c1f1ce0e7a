"""What an engine is to the rest of promptmill: render, add, step, abort.

`render` may be called from any thread. Everything else is called from one thread, the one that made the engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.cards import Limits
from jobs.generation import Generation
from jobs.rendering import Rendered
from jobs.schema import Problem


@dataclass(frozen=True)
class EngineRequest:
    """A rendered request; `key` is the caller's, and comes back with the outcome."""

    key: int
    prompt: Rendered
    max_tokens: int
    stream: bool
    sampling: dict[str, Any]


@dataclass(frozen=True)
class Completion:
    """A finished generation. `pieces` is the text as it was produced, for requests with `stream` only."""

    key: int
    text: str
    pieces: tuple[str, ...] | None
    finish_reason: str
    num_prompt_tokens: int
    num_completion_tokens: int


@dataclass(frozen=True)
class Failure:
    """The engine refused this one request, or gave it up; the others go on. A transient one may be tried again."""

    key: int
    message: str
    is_transient: bool = False


class Engine(Protocol):
    @property
    def label(self) -> str:
        """Name and version, for people."""

    @property
    def num_seqs(self) -> int:
        """How many requests run at once; more wait inside the engine."""

    @property
    def num_unfinished(self) -> int:
        """Requests added and not yet finished or aborted."""

    @property
    def is_dead(self) -> bool:
        """Whether it is known to have died, asked from another thread while `step` may be waiting."""

    def render(self, generations: Sequence[Generation], limits: Limits) -> list[Rendered | Problem]:
        """See `jobs.rendering.Renderer.render`."""

    def add(self, request: EngineRequest) -> None:
        """Queue a request; ValueError when the engine refuses it, with a text that holds no prompt."""

    def abort(self, keys: Sequence[int]) -> None:
        """Forget requests; those that are finished or unknown are passed over."""

    def step(self) -> list[Completion | Failure]:
        """One forward pass: what finished in it. Any exception means that the engine is dead."""

    def close(self) -> None:
        """Give back its memory and its processes."""
