"""Function calling: what a request may say of tools, what a template gets of them, and which calls a completion has."""

import json
from typing import Any

import jsonschema_rs
import pytest

from jobs.generation import check_sampling
from jobs.schema import Problem
from jobs.tool_messages import as_plain_messages, as_template_messages
from jobs.tools import ToolUse, check_tools, parse_tools, split_calls

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/name"}},
            "required": ["city"],
            "$defs": {"name": {"type": "string"}},
        },
    },
}
TIME = {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALL = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
READ = {"name": "get_weather", "arguments": {"city": "Rome"}}


def use(choice: Any = None, *tools: Any) -> ToolUse:
    found = parse_tools({"tools": list(tools or (WEATHER, TIME)), "tool_choice": choice})
    assert found is not None
    return found


# what a request may say


@pytest.mark.parametrize("choice", [None, "none", "auto", "required", NAMED])
def test_every_choice_of_openai_is_taken(choice: Any) -> None:
    assert check_tools({"tools": [WEATHER, TIME], "tool_choice": choice}) == []


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [TIME] * 129}, "tools"),
        ({"tools": [TIME, TIME]}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0]"),
        ({"tools": [TIME, {"type": "function", "function": 5}]}, "tools[1].function.name"),
        ({"tools": [{"name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"name": ["a"]}]}, "tools[0].name"),
        ({"tools": [{"name": "a", "description": 5}]}, "tools[0].description"),
        ({"tools": [{"name": "a", "parameters": []}]}, "tools[0].parameters"),
        ({"tools": [{"name": "a", "parameters": {"type": "string"}}]}, "tools[0].parameters"),
        ({"tools": [{"name": "a", "parameters": {"required": 5}}]}, "tools[0].parameters"),
        ({"tools": [TIME], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": {"name": "get_time"}}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": NAMED}, "tool_choice.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": NAMED}, "tool_choice"),
    ],
)
def test_what_is_impossible_is_refused_by_its_path(body: dict[str, Any], path: str) -> None:
    (problem,) = check_tools(body)
    assert (problem.code, problem.path) == ("invalid_parameter", path)


def test_parameters_must_be_enforceable_only_where_a_call_is_forced() -> None:
    pytest.importorskip("llguidance", reason="it comes with vLLM")
    tool = {"name": "a", "parameters": {"properties": {"b": {"type": "array", "uniqueItems": True}}}}
    assert check_tools({"tools": [tool]}) == []
    (problem,) = check_tools({"tools": [tool], "tool_choice": "required"})
    assert (problem.code, problem.path) == ("unsupported_schema", "tools[0].parameters")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"prompt": "x", "raw": True, "tools": [TIME]}, "tools"),
        ({"prompt": "x", "stream": True, "tools": [TIME]}, "tools"),
        ({"prompt": "x", "response_format": {"type": "json_object"}, "tools": [TIME]}, "response_format"),
    ],
)
def test_tools_do_not_go_with_everything(body: dict[str, Any], path: str) -> None:
    (problem,) = check_sampling(body)
    assert problem.path == path
    assert check_sampling({**body, "tool_choice": "none"}) == []


def test_no_tool_is_offered_where_none_may_be_called() -> None:
    assert parse_tools({"tools": [TIME], "tool_choice": "none"}) is None
    assert parse_tools({"tools": []}) is None
    assert parse_tools({}) is None


def test_templates_get_all_that_they_ask_for() -> None:
    assert use(None, {"name": "a"}).tools == (
        {
            "type": "function",
            "function": {"name": "a", "description": "", "parameters": {"type": "object", "properties": {}}},
        },
    )


@pytest.mark.parametrize(
    ("choice", "call", "is_valid"),
    [
        ("required", READ, True),
        ("required", {"name": "get_time", "arguments": {}}, True),
        ("required", {"name": "get_time", "arguments": {"city": "Rome"}}, False),
        ("required", {"name": "get_weather", "arguments": {"city": 5}}, False),
        ("required", {"name": "other", "arguments": {}}, False),
        (NAMED, READ, True),
        (NAMED, {"name": "get_weather", "arguments": {}}, False),
        (NAMED, {"name": "get_time", "arguments": {}}, False),
    ],
)
def test_a_forced_call_satisfies_its_tool_s_own_schema(choice: Any, call: Any, *, is_valid: bool) -> None:
    schema = use(choice).schema
    assert schema is not None
    assert jsonschema_rs.validator_for(json.loads(schema)).is_valid(call) is is_valid


# what a completion says


@pytest.mark.parametrize(
    ("text", "response", "calls"),
    [
        ("no call", "no call", []),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", [READ]),
        (f"Let me see. <tool_call>{CALL}</tool_call> Done.", "Let me see.  Done.", [READ]),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", [READ, READ]),
        (f"<tool_call>{CALL}", "", [READ]),
        (
            '<tool_call>{"name": "a", "arguments": "{\\"b\\": 1}"}</tool_call>',
            "",
            [{"name": "a", "arguments": {"b": 1}}],
        ),
        (
            '<tool_call>{"arguments": {"b": "</tool_call>"}, "name": "a"}</tool_call>',
            "",
            [{"name": "a", "arguments": {"b": "</tool_call>"}}],
        ),
        (
            f"<tool_call>{{oops}}</tool_call><tool_call>{CALL}</tool_call>",
            "<tool_call>{oops}</tool_call>",
            [READ],
        ),
    ],
)
def test_calls_are_read_and_the_text_around_them_stays(text: str, response: str, calls: Any) -> None:
    assert split_calls(text, use()) == (response, calls)


@pytest.mark.parametrize(
    "inside",
    [
        "",
        "{}",
        "[]",
        "{'name': 'a', 'arguments': {}}",
        '{"name": 5, "arguments": {}}',
        '{"name": "a"}',
        CALL[:-2],
        '{"name": "a", "arguments": [1]}',
        '{"name": "a", "arguments": "b"}',
        "[" * 5000,
    ],
)
def test_a_malformed_call_stays_text_as_it_was(inside: str) -> None:
    text = f"  Well: <tool_call>{inside}</tool_call>\n"
    assert split_calls(text, use()) == (text, [])


def test_a_forced_call_is_the_whole_completion() -> None:
    assert split_calls(CALL, use("required")) == ("", [READ])
    cut_off = CALL[:-5]
    assert split_calls(cut_off, use(NAMED)) == (cut_off, [])


# what a template gets


def test_messages_without_tools_are_not_touched() -> None:
    messages = [{"role": "user", "content": "hi", "name": "ada"}]
    assert as_template_messages(messages) is messages


def conversation() -> list[dict[str, Any]]:
    function = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]


def test_calls_have_objects_for_templates_and_answers_have_names() -> None:
    _, _, called, answered = as_template_messages(conversation())
    assert called["content"] == ""
    assert called["tool_calls"] == [{"type": "function", "function": READ, "id": "call_1"}]
    assert answered["name"] == "get_weather"


def test_native_calls_are_taken_too_and_odd_ones_are_the_template_s_to_refuse() -> None:
    messages = [{"role": "assistant", "content": "x", "tool_calls": [READ]}]
    assert as_template_messages(messages)[0]["tool_calls"] == [{"type": "function", "function": READ}]
    odd: list[Any] = [
        {"role": "assistant", "content": "x", "tool_calls": [5, {"function": {"arguments": "{"}}]},
        {"role": "assistant", "content": "x", "tool_calls": 5},
        {"role": "assistant", "content": "x", "tool_calls": [{"id": "y", "function": {}}]},
        {"role": "tool", "content": "x", "tool_call_id": ["y"]},
    ]
    assert as_template_messages(odd) == odd


def test_a_template_that_knows_no_tools_gets_text() -> None:
    plain = as_plain_messages(as_template_messages(conversation()), use())
    assert [one["role"] for one in plain] == ["system", "user", "assistant", "tool"]
    assert all(isinstance(one["content"], str) and one.keys() == {"role", "content"} for one in plain)
    assert '"name": "get_time"' in plain[0]["content"]
    assert plain[0]["content"].endswith("\n\nBe brief.")
    assert split_calls(plain[2]["content"], use()) == ("", [READ])
    assert plain[3]["content"] == "<tool_response>\nsunny\n</tool_response>"
    assert as_plain_messages([{"role": "user", "content": "x"}], use())[0]["role"] == "system"


def test_problems_are_values() -> None:
    assert check_tools({"tools": [5]}) == [
        Problem("invalid_parameter", "tools[0]", 'it must be {"type": "function", "function": {...}}')
    ]
