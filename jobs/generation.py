"""A request as the code works with it: what to generate from, and with which sampling parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.schema import Problem, RequestSchema
from jobs.structured import OUTPUT_FIELDS, answer_schema, check_response_format
from jobs.tool_messages import as_template_messages
from jobs.tools import ToolUse, check_tools, parse_tools

# The default of the card format's own schemas, for a card whose schema gives none.
DEFAULT_MAX_TOKENS = 256
MAX_CHOICES = 128
MAX_LOGPROBS = 20

# an empty one would end a completion before it begins
_StopText = Annotated[str, Field(min_length=1)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class Defaults(BaseModel):
    """Sampling parameters that a card or a job may give its requests; ranges are those that vLLM accepts."""

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
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None


class Sampling(Defaults):
    """Sampling parameters beyond the card, checked when present. `logprobs`: a number is `true` with so many
    `top_logprobs`."""

    logprobs: bool | Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives a token; None for no logprobs."""
        if self.logprobs is None or self.logprobs is False:
            return None
        return (self.top_logprobs or 0) if self.logprobs is True else self.logprobs


DEFAULT_FIELDS = frozenset(Defaults.model_fields)
# Everything that a request may say beyond its card.
SAMPLING_FIELDS = frozenset(Sampling.model_fields) | OUTPUT_FIELDS
_MESSAGES = {
    "stop": "Input should be a string that is not empty, or a list of up to 64 of them",
    "logprobs": f"Input should be true, false or a whole number from 0 to {MAX_LOGPROBS}",
}


@dataclass(frozen=True)
class Generation:
    """Either `prompt` or `messages` is set. `raw`: the prompt goes in as it is, without the chat template.

    `sampling` are vLLM's parameters, with `n` and `logprobs` as numbers. `schema`: the JSON Schema, as JSON text, that
    the completion satisfies unless it is cut off. `is_repeatable`: asking once more would ask for the same, since it is
    greedy or somebody named its seed.
    """

    prompt: str | None
    messages: list[dict[str, Any]] | None
    raw: bool
    stream: bool
    max_tokens: int
    sampling: dict[str, Any] = field(default_factory=dict)
    schema: str | None = None
    tools: ToolUse | None = None
    is_repeatable: bool = False

    @property
    def max_completion_tokens(self) -> int:
        """Of all its completions."""
        return self.max_tokens * int(self.sampling.get("n", 1))


_NO_DEFAULTS: Mapping[str, Any] = {}


def check_sampling(body: Mapping[str, Any], defaults: Mapping[str, Any] = _NO_DEFAULTS) -> list[Problem]:
    """What is wrong with the sampling parameters of `body`; `defaults` are the job's and the card's."""
    has_choices = (defaults.get("n") or 1) > 1
    if SAMPLING_FIELDS.isdisjoint(body) and not (has_choices and body.get("stream") is True):
        return []
    try:
        sampling = Sampling.model_validate(body)
    except ValidationError as error:
        # by field: a union has one error for each of its members
        messages = {str(one["loc"][0]): one["msg"] for one in error.errors()}
        messages.update({name: text for name, text in _MESSAGES.items() if name in messages})
        return [Problem("invalid_parameter", name, message) for name, message in messages.items()]
    problems = check_response_format(body) + check_tools(body)
    return problems or [
        Problem("invalid_parameter", name, message)
        for name, message in _contradictions(body, sampling, defaults).items()
    ]


def check_defaults(values: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the defaults that a card or a job gives its requests."""
    unknown = [name for name in values if name not in DEFAULT_FIELDS and name != "max_tokens"]
    known = ", ".join(sorted(DEFAULT_FIELDS))
    found = [Problem("invalid_parameter", name, f"it is none of: {known}") for name in unknown]
    max_tokens = values.get("max_tokens", 1)
    if type(max_tokens) is not int or max_tokens < 1:
        found.append(
            Problem("invalid_parameter", "max_tokens", "max_tokens must be a whole number from 1 on")
        )
    return found or check_sampling(values)


def _contradictions(
    body: Mapping[str, Any], sampling: Sampling, defaults: Mapping[str, Any]
) -> dict[str, str]:
    """What each field by itself may say, and all of them together may not."""
    found = {}
    temperature = defaults.get("temperature") if sampling.temperature is None else sampling.temperature
    n = sampling.n or defaults.get("n") or 1
    if n > 1 and temperature == 0:
        found["n"] = "with temperature 0 all completions would be the same; n above 1 needs a higher one"
    if sampling.top_logprobs is not None and sampling.logprobs is not True:
        found["top_logprobs"] = "top_logprobs needs logprobs: true"
    tools = parse_tools(body)
    if body.get("stream") is True:
        no_place = "the event stream has no place for it; leave out stream, or this"
        if n > 1:
            found["n"] = no_place
        if sampling.num_logprobs is not None:
            found["logprobs"] = no_place
        if tools is not None:
            found["tools"] = no_place
    if tools is not None:
        if isinstance(body.get("prompt"), str) and body.get("raw") is True:
            found["tools"] = "tools go in through the chat template, which a raw prompt does without"
        elif answer_schema(body) is not None:
            found["response_format"] = (
                "it would keep the tools from being called; leave one of them out, or give tool_choice none"
            )
    return found


def parse_generation(
    schema: RequestSchema, body: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Generation:
    """Type a body that the schema and the checks above found valid. What it does not say is taken from `defaults`,
    the job's and the card's, and then from the schema."""
    known, of_schema = schema.defaults_of(body)
    values = {**of_schema, **{name: body[name] for name in known if body.get(name) is not None}}
    sampling = {name: value for name, value in of_schema.items() if name in DEFAULT_FIELDS}
    sampling |= {name: value for name, value in defaults.items() if name in DEFAULT_FIELDS}
    if not SAMPLING_FIELDS.isdisjoint(body):
        given = Sampling.model_validate(body)
        sampling |= given.model_dump(exclude_none=True, exclude={"logprobs", "top_logprobs"})
        if (num_logprobs := given.num_logprobs) is not None:
            sampling["logprobs"] = num_logprobs
    prompt = values.get("prompt")
    messages = None if prompt is not None else values.get("messages")
    tools = None if OUTPUT_FIELDS.isdisjoint(body) else parse_tools(body)
    said = body["max_tokens"] if "max_tokens" in known and body.get("max_tokens") is not None else None
    return Generation(
        prompt=prompt,
        messages=messages and as_template_messages(messages),
        raw=bool(values.get("raw", False)),
        stream=bool(values.get("stream", False)),
        max_tokens=int(
            said or defaults.get("max_tokens") or of_schema.get("max_tokens") or DEFAULT_MAX_TOKENS
        ),
        sampling=sampling,
        schema=tools.schema if tools is not None else answer_schema(body),
        tools=tools,
    )
