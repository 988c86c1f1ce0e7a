"""Messages about tools, as chat templates read them."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.tools import ToolUse

_INSTRUCTIONS = """\
You can call the functions whose signatures stand between <tools> and </tools>, one JSON object a line:
<tools>
{tools}
</tools>
To call one, write its name and its arguments as a JSON object, and nothing else within the tags:
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument's name": "its value"}}}}
</tool_call>
What it returns comes within <tool_response> tags."""


def as_template_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with tool calls in the form that templates ask for: OpenAI's, the arguments as objects, the answers by
    the function's name. Messages without are the same list."""
    if not any(map(speaks_of_tools, messages)):
        return messages
    names: dict[str, str] = {}
    return [_as_template_message(one, names) if speaks_of_tools(one) else one for one in messages]


def speaks_of_tools(message: Any) -> bool:
    return isinstance(message, dict) and bool(message.get("tool_calls") or message.get("role") == "tool")


def _as_template_message(message: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        made = [_as_template_call(call, names) for call in calls]
        return {**message, "content": message.get("content") or "", "tool_calls": made}
    if "name" not in message:
        name = names.get(str(message.get("tool_call_id")))
        return message if name is None else {**message, "name": name}
    return message


def _as_template_call(call: Any, names: dict[str, str]) -> Any:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return call
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # then the template gets what was said
            arguments = json.loads(arguments)
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if "id" not in call:
        return made
    names[str(call["id"])] = function["name"]
    return {**made, "id": call["id"]}


def as_plain_messages(messages: Sequence[Mapping[str, Any]], tools: ToolUse | None) -> list[dict[str, Any]]:
    """The same for a template that knows nothing of tools: their signatures in a system message, in front of what the
    first one says itself, calls and answers as text."""
    plain = [_as_plain_message(one) for one in messages]
    if tools is None:
        return plain
    signatures = "\n".join(json.dumps(one["function"], ensure_ascii=False) for one in tools.tools)
    system = _INSTRUCTIONS.format(tools=signatures)
    if plain and plain[0].get("role") == "system":
        return [{**plain[0], "content": f"{system}\n\n{plain[0].get('content') or ''}"}, *plain[1:]]
    return [{"role": "system", "content": system}, *plain]


def _as_plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content") or ""
    if message.get("role") == "tool":
        return {"role": "tool", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return dict(message)
    texts = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in calls
        if isinstance(call, dict) and isinstance(call.get("function"), dict)
    ]
    return {"role": message.get("role"), "content": "\n".join([content, *texts] if content else texts)}
