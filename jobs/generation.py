"""A request as the code works with it: what to generate from, and with which sampling parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.schema import Problem, RequestSchema

# The default of the card format's own schemas, for a card whose schema gives none.
DEFAULT_MAX_TOKENS = 256

# an empty one would end a completion before it begins
_StopText = Annotated[str, Field(min_length=1)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class Sampling(BaseModel):
    """Sampling parameters beyond the card, checked when present; ranges are those that vLLM accepts."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: _StopText | Annotated[list[_StopText], Field(max_length=64)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None


SAMPLING_FIELDS = frozenset(Sampling.model_fields)


@dataclass(frozen=True)
class Generation:
    """Either `prompt` or `messages` is set. `raw`: the prompt goes in as it is, without the chat template."""

    prompt: str | None
    messages: list[dict[str, Any]] | None
    raw: bool
    stream: bool
    max_tokens: int
    sampling: dict[str, Any] = field(default_factory=dict)


def check_sampling(body: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the sampling parameters of `body`."""
    if SAMPLING_FIELDS.isdisjoint(body):
        return []
    try:
        Sampling.model_validate(body)
    except ValidationError as error:
        # by field: a union has one error for each of its members
        messages = {str(one["loc"][0]): one["msg"] for one in error.errors()}
        if "stop" in messages:
            messages["stop"] = "Input should be a string that is not empty, or a list of up to 64 of them"
        return [Problem("invalid_request", name, message) for name, message in messages.items()]
    return []


def check_max_tokens(body: Mapping[str, Any]) -> list[Problem]:
    """The schema allows a max_tokens of 0 or less; no engine does."""
    value = body.get("max_tokens", 1)
    if isinstance(value, int | float) and value < 1:
        return [Problem("invalid_request", "max_tokens", "max_tokens must be at least 1")]
    return []


def parse_generation(
    schema: RequestSchema, body: Mapping[str, Any], card_sampling: Mapping[str, Any]
) -> Generation:
    """Type a body that the schema and the checks above found valid; defaults are the schema's, then the card's."""
    known, defaults = schema.defaults_of(body)
    values = {**defaults, **{name: body[name] for name in known if name in body}}
    given = Sampling.model_validate(body).model_dump(exclude_none=True)
    prompt = values.get("prompt")
    return Generation(
        prompt=prompt,
        messages=None if prompt is not None else values.get("messages"),
        raw=bool(values.get("raw", False)),
        stream=bool(values.get("stream", False)),
        max_tokens=int(values.get("max_tokens", DEFAULT_MAX_TOKENS)),
        sampling={**card_sampling, **given},
    )
