"""What a card's schema allows and no engine can do: found at submit, under codes of its own."""

from collections.abc import Mapping
from typing import Any

from jobs.cards import Limits
from jobs.schema import Problem, RequestSchema, compile_schema

_FLAGS = ("raw", "stream")


class Feasibility:
    """Holds bodies that a card's schema found valid against what the engine takes of them."""

    def __init__(self, schema: RequestSchema, limits: Limits) -> None:
        self._schema = schema
        self._max_total_tokens = limits.max_total_tokens
        self._certain = compile_schema(_certain(limits))

    def is_certain(self, body: object) -> bool:
        """Whether `problems` would be empty, told quickly; of a few odd bodies only `problems` can tell."""
        return self._certain.is_valid(body)

    def problems(self, body: Mapping[str, Any]) -> list[Problem]:
        """What the engine cannot do, of those fields that the body's form has; the others have no effect."""
        if self.is_certain(body):
            return []
        known, _ = self._schema.defaults_of(body)
        values = {name: body[name] for name in known if body.get(name) is not None}
        found = [
            Problem("invalid_parameter", name, f"{name} must be true or false")
            for name in _FLAGS
            if not isinstance(values.get(name, False), bool)
        ]
        if "prompt" not in values:
            found += _check_messages(values.get("messages"))
        elif not isinstance(values["prompt"], str):
            found.append(Problem("invalid_parameter", "prompt", "prompt must be a string"))
        return found + self._check_max_tokens(values.get("max_tokens", 1))

    def _check_max_tokens(self, value: object) -> list[Problem]:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            return [Problem("invalid_parameter", "max_tokens", "max_tokens must be a whole number")]
        if value < 1:
            return [Problem("invalid_parameter", "max_tokens", "max_tokens must be at least 1")]
        if value < self._max_total_tokens:
            return []
        shown = f"{int(value):,}" if value < 10**18 else "this"
        message = (
            f"max_tokens {shown} leaves no room for a prompt in max_total_tokens ({self._max_total_tokens:,})"
        )
        return [Problem("max_total_tokens_exceeded", "max_tokens", message)]


def _certain(limits: Limits) -> dict[str, Any]:
    """A schema of what every form may hold: most lines satisfy it, whatever their form, and need no closer look."""
    message = {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}}
    return {
        "type": "object",
        "anyOf": [{"required": ["prompt"]}, {"required": ["messages"]}],
        "properties": {
            "prompt": {"type": "string"},
            "messages": {"type": "array", "minItems": 1, "items": message},
            "max_tokens": {"type": "integer", "minimum": 1, "exclusiveMaximum": limits.max_total_tokens},
            **{name: {"type": "boolean"} for name in _FLAGS},
        },
    }


def _check_messages(messages: object) -> list[Problem]:
    if not isinstance(messages, list):
        return [Problem("invalid_messages", "", "a request needs a prompt or messages")]
    if not messages:
        return [Problem("invalid_messages", "messages", "there must be at least one message")]
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            return [Problem("invalid_messages", f"messages[{number}]", "a message must be an object")]
        if not isinstance(message.get("role"), str):
            return [Problem("invalid_messages", f"messages[{number}].role", "a role must be a string")]
    return []
