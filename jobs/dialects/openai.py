"""OpenAI's Batch lines as card lines: the body lifted up, what means nothing here left out, the rest named.

The form is that of OpenAI's Batch and chat completion references. What the engine can do is asked of
jobs/generation.py, and of the card's schema.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from jobs.cards import Card
from jobs.dialects.detection import is_openai
from jobs.dialects.messages import as_text, plain_message
from jobs.generation import SAMPLING_FIELDS
from jobs.reader import NativeLine, RawLine, Refused
from jobs.schema import Problem, RequestSchema, format_path

_CHAT = "messages"
_COMPLETION = "prompt"
# Azure writes them without v1
_ENDPOINTS = {
    "/v1/chat/completions": _CHAT,
    "/chat/completions": _CHAT,
    "/v1/completions": _COMPLETION,
    "/completions": _COMPLETION,
}
# What changes no answer: it is about accounts, caches, records and speed.
_WITHOUT_EFFECT = frozenset(
    {
        "user",
        "service_tier",
        "store",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prediction",
        "stream_options",
    }
)
# What asks for nothing, beside null.
_OFF: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "stream": (False,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "stop": ([],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True,),
    "reasoning_effort": ("none",),
}
# tool_choice and its like say something only beside these
_NEEDS_TOOLS = frozenset({"tool_choice", "parallel_tool_calls", "function_call"})
_MAX_NAMED_MODELS = 5


class OpenAILines:
    """Makes card lines of OpenAI's. `is_model_given`: the command line named the card, so that a line's model does
    not count and is only warned of."""

    def __init__(self, card: Card, *, is_model_given: bool) -> None:
        schema = RequestSchema(card.input_schema)
        self._card_name = card.name
        self._names = {None, *card.names}
        self._is_model_given = is_model_given
        # the stream's form of a result has no place in a batch of OpenAI's
        self._supported = (SAMPLING_FIELDS | schema.known_fields) - {"stream", "raw", "prompt", "messages"}
        self._supported |= {"metadata"}  # may hold a reference
        # bodies with nothing else are looked at no closer
        self._plain = {form: (self._supported - _OFF.keys()) | {form} for form in (_CHAT, _COMPLETION)}
        self._has_raw = "raw" in schema.known_fields
        self._foreign: Counter[str] = Counter()
        self._num_foreign = 0

    def translate(self, block: Sequence[RawLine]) -> list[NativeLine]:
        return [(number, self._line(data)) for number, data in block]

    def notes(self) -> Iterator[str]:
        """One warning for all lines that name another model."""
        if self._num_foreign:
            more = ", …" if len(self._foreign) == _MAX_NAMED_MODELS else ""
            names = ", ".join(self._foreign) + more
            lines = f"{self._num_foreign:,} lines" if self._num_foreign > 1 else "1 line"
            yield f"{lines} name another model ({names}): they run on {self._card_name}, as --model says"

    def _line(self, data: bytes | None) -> bytes | Refused | None:
        try:
            line = orjson.loads(data or b"")
        except orjson.JSONDecodeError:
            return data  # whoever checks lines explains it
        if not isinstance(line, dict):
            return data
        custom_id = line.get("custom_id")
        if not is_openai(line):
            message = (
                "it is no OpenAI Batch line (custom_id, method, url, body), as the file's first line is;"
            )
            message += " lines of another form go into a file of their own"
            return _refused(custom_id, [Problem("invalid_request", "", message)])
        body = line["body"]
        endpoint = _ENDPOINTS.get(line["url"]) if isinstance(line.get("url"), str) else None
        if (
            endpoint is None
            or not isinstance(body, dict)
            or str(line.get("method", "POST")).upper() != "POST"
        ):
            return _refused(custom_id, _envelope_problems(line, is_url_known=endpoint is not None))
        problems = self._to_native(body, endpoint)
        if problems:
            return _refused(custom_id, problems)
        if endpoint == _COMPLETION:
            body["raw"] = True
        if custom_id is not None:
            body["custom_id"] = custom_id
        try:
            return orjson.dumps(body)
        except orjson.JSONEncodeError:
            return _refused(custom_id, [Problem("invalid_request", "body", "it is nested too deeply")])

    def _to_native(self, body: dict[str, Any], endpoint: str) -> list[Problem]:
        """Change `body` into the card's; what is wrong with it."""
        problems = []
        model = body.pop("model", None)
        if not isinstance(model, str | None) or model not in self._names:
            problems += self._other_model(model)
        if not self._plain[endpoint].issuperset(body) or None in body.values():
            problems += self._unusual(body, endpoint)
        if endpoint == _CHAT:
            problems += _plain_messages(body)
        else:
            problems += self._plain_prompt(body)
        return problems

    def _other_model(self, model: object) -> list[Problem]:
        if not isinstance(model, str):
            return [Problem("invalid_request", "body.model", "model must be a string")]
        if not self._is_model_given:
            message = (
                f"it is another model than the card {self._card_name}; to run the file on this card all the"
            )
            message += f" same, say --model {self._card_name}"
            return [Problem("unknown_model", "body.model", message)]
        self._num_foreign += 1
        name = format_path([model])
        if name in self._foreign or len(self._foreign) < _MAX_NAMED_MODELS:
            self._foreign[name] += 1
        return []

    def _unusual(self, body: dict[str, Any], endpoint: str) -> list[Problem]:
        problems = []
        most = body.pop("max_completion_tokens", None)
        if most is not None and body.setdefault("max_tokens", most) != most:
            if body["max_tokens"] is None:
                body["max_tokens"] = most
            else:
                message = "max_completion_tokens and max_tokens say different things; leave one out"
                problems.append(Problem("invalid_request", "body.max_completion_tokens", message))
        has_tools = bool(body.get("tools") or body.get("functions"))
        for name in [name for name in body if name not in (_CHAT, _COMPLETION)]:
            value = body[name]
            is_supported = name in self._supported
            if value is None or name in _WITHOUT_EFFECT or _is_off(name, value, has_tools=has_tools):
                del body[name]
            elif not is_supported:
                problems.append(Problem("unsupported", format_path(["body", name]), _why_not(name)))
        other = _COMPLETION if endpoint == _CHAT else _CHAT
        if body.pop(other, None) is not None:
            message = f"the url's endpoint takes {endpoint}, and not this"
            problems.append(Problem("invalid_request", f"body.{other}", message))
        return problems

    def _plain_prompt(self, body: dict[str, Any]) -> list[Problem]:
        prompt = body.get(_COMPLETION)
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
            body[_COMPLETION] = prompt[0]
        elif not isinstance(prompt, str):
            message = "a line has one prompt, a string" if prompt else "a completion needs a prompt, a string"
            return [Problem("unsupported" if prompt else "invalid_request", "body.prompt", message)]
        if not self._has_raw:
            message = f"the card {self._card_name} has no prompts without the chat template; use messages"
            return [Problem("unsupported", "url", message)]
        return []


def _is_off(name: str, value: object, *, has_tools: bool) -> bool:
    if name in _NEEDS_TOOLS and has_tools:
        return name == "parallel_tool_calls" and value is True
    if name == "parallel_tool_calls":
        return True
    # by type too: to Python 0 and false are the same
    return any(type(value) is type(off) and value == off for off in _OFF.get(name, ()))


def _why_not(name: str) -> str:
    if name == "stream":
        return "a batch has no streams; leave it out"
    return "this is not supported; leave it out"


def _plain_messages(body: dict[str, Any]) -> list[Problem]:
    messages = body.get(_CHAT)
    if not isinstance(messages, list):
        message = (
            "a chat completion needs messages, a list" if messages is None else "messages must be a list"
        )
        return [Problem("invalid_request", "body.messages", message)]
    problems: list[Problem] = []
    for at, message in enumerate(messages):
        # what else is no object is for the card's schema to say
        if isinstance(message, dict) and (
            type(message.get("content")) is not str or len(message) > 2 or message.get("role") == "developer"
        ):
            plain_message(message)
            text = as_text(message["content"])
            if isinstance(text, str):
                message["content"] = text
            else:
                part, why = text
                problems.append(Problem("unsupported", f"body.messages[{at}].content{part}", why))
    return problems


def _envelope_problems(line: dict[str, Any], *, is_url_known: bool) -> list[Problem]:
    problems = []
    if str(line.get("method", "POST")).upper() != "POST":
        problems.append(Problem("invalid_request", "method", "the method is POST"))
    if not is_url_known:
        message = "what runs here is /v1/chat/completions and /v1/completions"
        problems.append(Problem("unsupported" if line.get("url") else "invalid_request", "url", message))
    if not isinstance(line["body"], dict):
        problems.append(Problem("invalid_request", "body", "the body must be an object"))
    return problems


def _refused(custom_id: object, problems: list[Problem]) -> Refused:
    return Refused(tuple(problems), custom_id if isinstance(custom_id, str) else None)


def explain_path(path: str) -> str:
    """Where in OpenAI's line stands what has this path in the card's."""
    is_there_already = path.partition(".")[0] in ("", "body", "custom_id", "url", "method")
    return path if is_there_already else f"body.{path}"
