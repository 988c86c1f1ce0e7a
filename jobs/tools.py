"""Function calling in the Hermes form: tools go in through the chat template, calls are read from the completion.

vLLM has a parser for this form too, but it wants its server's request objects and a tokenizer, drops the text behind
the first call, and gives up all calls for one that is malformed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.schema import Problem
from jobs.structured import as_text, check_answer_schema

MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}", re.ASCII)
_BEGIN = "<tool_call>"
_END = "</tool_call>"
_CHOICES = ("none", "auto", "required")
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_LITERALS = frozenset({"const", "enum", "default", "examples"})
_SKIPPED = re.compile(r"\s*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class ToolUse:
    """The tools that a request's completion may call, in OpenAI's form and complete. With `schema` (JSON text) it must
    call one: then it is that call's JSON alone."""

    tools: tuple[dict[str, Any], ...]
    schema: str | None = None


def check_tools(body: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with `tools` and `tool_choice`."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if tools is not None and not isinstance(tools, list):
        return [Problem("invalid_parameter", "tools", "it must be an array of functions")]
    if tools and len(tools) > MAX_TOOLS:
        return [Problem("invalid_parameter", "tools", f"there may be at most {MAX_TOOLS}")]
    must_call = choice == "required" or isinstance(choice, dict)
    found = []
    for number, tool in enumerate(tools or []):
        found += _check_tool(tool, f"tools[{number}]", must_call=must_call)
    names = [_function(tool).get("name") for tool in tools or [] if isinstance(tool, dict)]
    if not found and len(set(names)) < len(names):
        found.append(Problem("invalid_parameter", "tools", "two of them have one name"))
    return found or _check_choice(choice, names)


def _check_tool(tool: object, path: str, *, must_call: bool) -> list[Problem]:
    if not isinstance(tool, dict) or tool.get("type", "function") != "function":
        return [Problem("invalid_parameter", path, 'it must be {"type": "function", "function": {...}}')]
    if "function" in tool:
        path += ".function"
    function = _function(tool)
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = "a name has 1 to 64 letters, digits, dots, underscores or dashes"
        return [Problem("invalid_parameter", f"{path}.name", message)]
    if not isinstance(function.get("description") or "", str):
        return [Problem("invalid_parameter", f"{path}.description", "it must be a string")]
    if parameters is None:
        return []
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        message = "it must be a JSON Schema of an object"
        return [Problem("invalid_parameter", f"{path}.parameters", message)]
    problems = check_answer_schema(parameters, f"{path}.parameters")
    # unless a call is forced, the engine is not held to them, and the model only reads them
    return [one for one in problems if must_call or one.code == "invalid_parameter"]


def _check_choice(choice: object, names: Sequence[Any]) -> list[Problem]:
    named = _named(choice)
    if choice is None or choice in ("none", "auto"):
        return []
    if choice != "required" and named is None:
        message = f'it must be one of: {", ".join(_CHOICES)}, or {{"type": "function", "function": {{"name": ...}}}}'
        return [Problem("invalid_parameter", "tool_choice", message)]
    if not names:
        return [Problem("invalid_parameter", "tool_choice", "there are no tools to choose from")]
    if named is not None and named not in names:
        return [Problem("invalid_parameter", "tool_choice.function.name", "none of the tools has this name")]
    return []


def _named(choice: object) -> str | None:
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a tool says of its function: as OpenAI has it under that name, or in its place as Workers AI does."""
    function = tool.get("function", tool)
    return function if isinstance(function, dict) else {}


def parse_tools(body: Mapping[str, Any]) -> ToolUse | None:
    """The tools that a checked `body` lets its completion call; None without any, and for tool_choice none."""
    choice = body.get("tool_choice")
    if not body.get("tools") or choice == "none":
        return None
    tools = tuple(_complete(_function(tool)) for tool in body["tools"])
    named = _named(choice)
    if named is None and choice != "required":
        return ToolUse(tools)
    callable_ = [tool["function"] for tool in tools if named in (None, tool["function"]["name"])]
    return ToolUse(tools, as_text(_call_schema(callable_)))


def _complete(function: Mapping[str, Any]) -> dict[str, Any]:
    """With all that templates ask for."""
    filled = {
        "name": function["name"],
        "description": function.get("description") or "",
        "parameters": function.get("parameters") or _NO_PARAMETERS,
    }
    return {"type": "function", "function": filled}


def _call_schema(functions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one call, of any of these."""
    calls = []
    for number, function in enumerate(functions):
        root = "#" if len(functions) == 1 else f"#/anyOf/{number}"
        parameters = _moved(function["parameters"], f"{root}/properties/arguments")
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": {**parameters, "type": "object"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _moved(schema: Any, to: str) -> Any:
    """A schema that is to stand at `to` in another one: its references lead there."""
    if isinstance(schema, list):
        return [_moved(one, to) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: f"{to}{value[1:]}"
        if name == "$ref" and isinstance(value, str) and value.startswith("#")
        else value
        if name in _LITERALS
        else _moved(value, to)
        for name, value in schema.items()
    }


def split_calls(text: str, use: ToolUse) -> tuple[str, list[dict[str, Any]]]:
    """The calls in a completion, as {"name", "arguments"}, and the text around them. What is malformed stays text."""
    if use.schema is not None:
        call, _ = _read_call(text, 0)
        return (text, []) if call is None else ("", [call])
    calls, kept, at = [], [], 0
    while (begin := text.find(_BEGIN, at)) >= 0:
        call, end = _read_call(text, begin + len(_BEGIN))
        if call is None:
            end = begin + len(_BEGIN)
            kept.append(text[at:end])
        else:
            kept.append(text[at:begin])
            calls.append(call)
            end = _skip(text, end)
            if text.startswith(_END, end):
                end += len(_END)
        at = end
    if not calls:
        return text, []
    return "".join([*kept, text[at:]]).strip(), calls


def _read_call(text: str, at: int) -> tuple[dict[str, Any] | None, int]:
    """The call whose JSON begins there, and where it ends; None when there is none."""
    try:
        call, end = _DECODER.raw_decode(text, _skip(text, at))
    except (ValueError, RecursionError):
        return None, at
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None, at
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        arguments = _json_object(arguments)
    return (
        ({"name": call["name"], "arguments": arguments}, end) if isinstance(arguments, dict) else (None, at)
    )


def _skip(text: str, at: int) -> int:
    match = _SKIPPED.match(text, at)
    return match.end() if match else at


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
