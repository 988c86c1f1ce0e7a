"""Token-exact admission: lines over the card's token limits found at submit, by the rendering of the workers."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from db.errors import CardError
from jobs.cards import Card
from jobs.generation import parse_generation
from jobs.rendering import Renderer
from jobs.schema import Problem, RequestSchema
from jobs.settings import Settings


class CheckTokens(StrEnum):
    """Whether lines are held against the token limits: also if that means fetching the tokenizer, where the weights
    are in a folder here, or not at all. ALWAYS is an error where the tokenizer cannot be had, the others go on."""

    ALWAYS = "always"
    IF_POSSIBLE = "if possible"
    IF_LOCAL = "if local"
    NEVER = "never"


class Admission:
    """Renders checked lines as the workers of `card` will, and holds them against its limits."""

    def __init__(self, card: Card, tokenizer: Any, sampling: Mapping[str, Any] | None = None) -> None:
        """`sampling`: the job's defaults."""
        self._limits = card.limits
        self._defaults = {**card.sampling, **(sampling or {})}
        self._schema = RequestSchema(card.input_schema)
        self._renderer = Renderer(tokenizer)

    def measure(self, bodies: Sequence[str]) -> list[int | Problem | None]:
        """For each valid body: its prompt tokens + those of all its completions at most, or why it is refused; None
        for one that is within the limits by its length alone."""
        generations = [parse_generation(self._schema, orjson.loads(body), self._defaults) for body in bodies]
        return [
            outcome + generation.max_completion_tokens if isinstance(outcome, int) else outcome
            for generation, outcome in zip(
                generations, self._renderer.measure(generations, self._limits), strict=True
            )
        ]


def open_admission(
    card: Card,
    settings: Settings,
    mode: CheckTokens = CheckTokens.IF_LOCAL,
    sampling: Mapping[str, Any] | None = None,
) -> tuple[Admission | None, str | None]:
    """The check, or None where there is none; and a warning when it was wanted and cannot be had.

    CardError for ALWAYS without a tokenizer. The echo engine's tokens are words, so nothing else asks for it there.
    """
    if mode is CheckTokens.NEVER or (mode is not CheckTokens.ALWAYS and settings.engine == "echo"):
        return None, None
    try:
        from jobs.tokenizers import TOKENIZERS_FOLDER, load_tokenizer

        weights = card.weights(settings.home)
        if mode is CheckTokens.IF_LOCAL and not Path(weights).is_dir():
            return None, None
        return Admission(card, load_tokenizer(weights, settings.home / TOKENIZERS_FOLDER), sampling), None
    except Exception as error:
        reason = str(error) if isinstance(error, CardError) else f"{type(error).__name__}: {error}"
        message = f"the tokenizer of {card.name} cannot be loaded ({reason.splitlines()[0]})"
        if mode is CheckTokens.ALWAYS:
            raise CardError(f"{message}; --no-check-tokens goes on without it") from error
        return None, f"{message}: only the workers will find lines that are over its token limits"
