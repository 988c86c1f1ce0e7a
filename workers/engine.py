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
from jobs.tools import ToolUse


@dataclass(frozen=True)
class EngineRequest:
    """A rendered request; `key` is the caller's, and comes back with the outcome."""

    key: int
    prompt: Rendered
    max_tokens: int
    stream: bool
    sampling: dict[str, Any]
    schema: str | None = None
    tools: ToolUse | None = None

    @classmethod
    def of(cls, key: int, prompt: Rendered, generation: Generation) -> "EngineRequest":
        return cls(
            key,
            prompt,
            generation.max_tokens,
            generation.stream,
            generation.sampling,
            generation.schema,
            generation.tools,
        )

    @property
    def num_choices(self) -> int:
        return int(self.sampling.get("n", 1))


@dataclass(frozen=True)
class Choice:
    """One completion of a request. `logprobs`: for each of its tokens, as in OpenAI's `content`."""

    text: str
    finish_reason: str
    logprobs: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Completion:
    """A finished generation. `pieces` is the text as it was produced, for requests with `stream` only; `others` are
    the second completion and all after it, and `num_completion_tokens` counts the tokens of all."""

    key: int
    text: str
    pieces: tuple[str, ...] | None
    finish_reason: str
    num_prompt_tokens: int
    num_completion_tokens: int
    logprobs: list[dict[str, Any]] | None = None
    others: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Failure:
    """The engine refused this one request, or gave it up; the others go on. A transient one may be tried again."""

    key: int
    message: str
    is_transient: bool = False
    code: str = "engine_error"


class RequestRefusedError(ValueError):
    """The engine refuses this one request; the text holds no prompt, and `code` becomes the result's."""

    def __init__(self, message: str, code: str = "engine_error") -> None:
        super().__init__(message)
        self.code = code


class Engine(Protocol):
    @property
    def label(self) -> str:
        """Name and version, for people."""

    @property
    def details(self) -> dict[str, Any]:
        """What would be needed to make the same answers again, as JSON: name, version, arguments without secrets,
        the weights' source and revision, the sampling parameters that it takes where nobody says any."""

    @property
    def num_seqs(self) -> int:
        """How many requests run at once; more wait inside the engine."""

    @property
    def max_num_batched_tokens(self) -> int:
        """The most tokens that one step computes."""

    @property
    def num_unfinished(self) -> int:
        """Requests added and not yet finished or aborted."""

    @property
    def is_dead(self) -> bool:
        """Whether it is known to have died, asked from another thread while `step` may be waiting."""

    def render(self, generations: Sequence[Generation], limits: Limits) -> list[Rendered | Problem]:
        """See `jobs.rendering.Renderer.render`."""

    def add(self, request: EngineRequest) -> None:
        """Queue a request; ValueError when the engine refuses it, with a text that holds no prompt, and a code of its
        own as a RequestRefusedError."""

    def abort(self, keys: Sequence[int]) -> None:
        """Forget requests; those that are finished or unknown are passed over."""

    def step(self) -> list[Completion | Failure]:
        """One forward pass: what finished in it. Any exception means that the engine is dead."""

    def close(self) -> None:
        """Give back its memory and its processes."""
