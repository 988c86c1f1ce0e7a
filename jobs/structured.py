"""response_format: completions that are JSON, or satisfy a JSON Schema; the engine holds the model to it."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson

from jobs.schema import Problem, find_schema_fault

# What a request may say of the form of its completion; `jobs.tools` reads the last two.
OUTPUT_FIELDS = frozenset({"response_format", "tools", "tool_choice"})
UNSUPPORTED = "unsupported_schema"
_ANY_OBJECT = '{"type":"object"}'
_KINDS = ("text", "json_object", "json_schema")
_MAX_REASON_CHARS = 300
_MAX_CACHED_CHARS = 64 * 1024


def check_response_format(body: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the response_format of `body`, as OpenAI has it; a schema that the engine could not hold a
    completion to is refused as `unsupported_schema`."""
    given = body.get("response_format")
    if given is None:
        return []
    kind = given.get("type") if isinstance(given, dict) else None
    if kind not in _KINDS:
        return [
            Problem("invalid_parameter", "response_format.type", f"it must be one of: {', '.join(_KINDS)}")
        ]
    if kind != "json_schema":
        return []
    path, schema = _schema_of(given)
    if not isinstance(schema, dict):
        return [Problem("invalid_parameter", path, "it must be a JSON Schema, as an object")]
    return check_answer_schema(schema, path)


def _schema_of(response_format: Mapping[str, Any]) -> tuple[str, Any]:
    """Under `schema`, where OpenAI has it, or in its place, where Workers AI does."""
    path = "response_format.json_schema"
    outer = response_format.get("json_schema")
    if isinstance(outer, dict) and ("schema" in outer or "name" in outer):
        return f"{path}.schema", outer.get("schema", {})
    return path, outer


def answer_schema(body: Mapping[str, Any]) -> str | None:
    """The schema, as JSON text, that a checked `body` asks its completions to satisfy."""
    given = body.get("response_format")
    if given is None:
        return None
    match given["type"]:
        case "json_object":
            return _ANY_OBJECT
        case "json_schema":
            return as_text(_schema_of(given)[1])
        case _:
            return None


def as_text(schema: Mapping[str, Any]) -> str:
    return orjson.dumps(schema).decode()


def check_answer_schema(schema: Mapping[str, Any], path: str) -> list[Problem]:
    """Why the engine could not hold a completion to `schema`, which stands at `path`."""
    text = as_text(schema)
    find_fault = _find_fault if len(text) <= _MAX_CACHED_CHARS else _find_fault.__wrapped__
    fault = find_fault(text)
    return [] if fault is None else [Problem(fault[0], path, fault[1])]


@lru_cache(256)  # most files say the same in each line
def _find_fault(text: str) -> tuple[str, str] | None:
    """A code and a reason."""
    fault = find_schema_fault(orjson.loads(text))
    if fault is not None:
        return "invalid_parameter", fault
    reason = _backend_refusal(text)
    if reason is None:
        return None
    return (
        UNSUPPORTED,
        f"the engine cannot hold a completion to it: {' '.join(reason.split())[:_MAX_REASON_CHARS]}",
    )


def _backend_refusal(text: str) -> str | None:
    """What llguidance, the backend that our engine uses, says of a schema. It is light, and there wherever vLLM is; on
    a machine without it only the worker finds out."""
    try:
        from llguidance import LLMatcher
    except ImportError:
        return None
    try:
        grammar = LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_flexible": False})
    except ValueError as error:
        return str(error)
    return LLMatcher.validate_grammar(grammar) or None
