"""The card's JSON Schema is the authority: its corners, its agreement with the reference, and errors without values."""

from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cards import find_card
from jobs.schema import Problem, RequestSchema, format_path

HERMES = find_card(Path("no-home"), "hermes-2-pro-mistral-7b").input_schema
SCHEMA = RequestSchema(HERMES)
REFERENCE = jsonschema.Draft202012Validator(HERMES)
# Stands in every string that a generated request holds, and must stand in no error.
MARK = "zxq"

USER = {"role": "user", "content": "hi"}


def problems(body: object) -> list[tuple[str, str]]:
    found = SCHEMA.problems(body)
    assert all(problem.code == "invalid_request" for problem in found)
    return [(problem.path, problem.message) for problem in found]


# corners


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ""},
        {"prompt": "x", "raw": True, "stream": False, "max_tokens": 1},
        {"prompt": "x", "max_tokens": 256.0},
        {"prompt": "x", "max_tokens": -5},
        {"prompt": "x" * 4096},
        {"prompt": "é" * 4096},
        {"prompt": "😀" * 4096},
        {"prompt": "x", "messages": 5},
        {"prompt": "x", "messages": [5]},
        {"prompt": "x", "messages": [{"role": "user"}]},
        {"prompt": 5, "messages": [USER]},
        {"prompt": "x" * 4097, "messages": [USER]},
        {"messages": []},
        {"messages": [USER, {**USER, "name": "ada"}]},
        {"messages": [USER], "raw": "of the other form"},
        {"prompt": "x", "unknown": {"deep": [1, {"er": None}]}},
        {"prompt": "x", "": 1},
    ],
    ids=lambda body: repr(body)[:40],
)
def test_a_request_that_satisfies_exactly_one_form_is_valid(body: dict[str, Any]) -> None:
    assert SCHEMA.is_valid(body)
    assert SCHEMA.problems(body) == []


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({}, [("", "a request needs prompt or messages")]),
        ({"promt": "x"}, [("", "a request needs prompt or messages")]),
        (
            {"prompt": "x", "messages": [USER]},
            [("", "a request has one of prompt and messages, and this has more than one")],
        ),
        (
            {"prompt": "x", "messages": []},
            [("", "a request has one of prompt and messages, and this has more than one")],
        ),
        ({"prompt": 5}, [("prompt", 'the value is not of type "string"')]),
        ({"prompt": None}, [("prompt", 'the value is not of type "string"')]),
        ({"prompt": "x" * 4097}, [("prompt", "the value is longer than 4096 characters")]),
        ({"prompt": "😀" * 4097}, [("prompt", "the value is longer than 4096 characters")]),
        ({"prompt": "x", "max_tokens": True}, [("max_tokens", 'the value is not of type "integer"')]),
        ({"prompt": "x", "max_tokens": 256.5}, [("max_tokens", 'the value is not of type "integer"')]),
        ({"prompt": "x", "max_tokens": "256"}, [("max_tokens", 'the value is not of type "integer"')]),
        ({"prompt": "x", "stream": 1}, [("stream", 'the value is not of type "boolean"')]),
        ({"prompt": "x", "raw": None}, [("raw", 'the value is not of type "boolean"')]),
        ({"messages": USER}, [("messages", 'the value is not of type "array"')]),
        ({"messages": [USER, "hi"]}, [("messages[1]", 'the value is not of type "object"')]),
        ({"messages": [USER, USER, {"content": "x"}]}, [("messages[2]", '"role" is a required property')]),
        (
            {"messages": [USER, USER, {"role": 5, "content": "x" * 4097}]},
            [
                ("messages[2].role", 'the value is not of type "string"'),
                ("messages[2].content", "the value is longer than 4096 characters"),
            ],
        ),
        # of two forms that are both meant, the one with less to mend
        ({"prompt": 5, "messages": [{}]}, [("prompt", 'the value is not of type "string"')]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_bad_request_is_explained_by_path_and_reason(
    body: dict[str, Any], found: list[tuple[str, str]]
) -> None:
    assert not SCHEMA.is_valid(body)
    assert problems(body) == found


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([], "an array"),
        (["x"], "an array"),
        ("x", "a string"),
        (5, "a number"),
        (0.5, "a number"),
        (None, "null"),
        (True, "a boolean"),
    ],
)
def test_a_line_that_is_no_object_is_told_what_it_is(value: object, kind: str) -> None:
    assert not SCHEMA.is_valid(value)
    assert problems(value) == [("", f"a request is a JSON object, not {kind}")]


@pytest.mark.parametrize("depth", [200, 300, 1000])
@pytest.mark.parametrize("field", ["prompt", "messages", "max_tokens"])
def test_depth_that_the_validator_cannot_follow_is_a_problem_and_no_crash(field: str, depth: int) -> None:
    body = orjson.loads('{"%s":%s1%s}' % (field, "[" * depth, "]" * depth))  # noqa: UP031  braces
    assert not SCHEMA.is_valid(body)
    assert problems(body)


def test_depth_in_a_field_that_the_schema_does_not_look_at_does_no_harm() -> None:
    assert SCHEMA.is_valid({"prompt": "x", "meta": orjson.loads("[" * 1000 + "]" * 1000)})


# against the reference

texts = st.text(max_size=8).map(lambda text: MARK + text)
long_texts = st.builds(
    lambda letter, length: MARK + letter * (length - len(MARK)),
    st.sampled_from(["x", "é", "😀", "e\u0301"]),
    st.sampled_from([2048, 2050, 4095, 4096, 4097]),
)
numbers = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-10, 5000).map(float),
    st.sampled_from([256, 256.0, 256.5, 0, -0.0, 1e30, 2**53 + 1.0]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts, long_texts)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
messages: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"role": st.sampled_from([f"{MARK}user", f"{MARK}system"]), "content": texts | long_texts},
    optional={f"{MARK}name": texts},
)
valid_fields = {
    "stream": st.booleans(),
    "max_tokens": st.one_of(st.integers(1, 5000), st.integers(1, 5000).map(float)),
}
prompt_forms: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"prompt": texts | long_texts}, optional={**valid_fields, "raw": st.booleans()}
)
message_forms: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"messages": st.lists(messages, max_size=4)}, optional=valid_fields
)
known_names = st.sampled_from(["prompt", "messages", "raw", "stream", "max_tokens", f"{MARK}unknown", "role"])


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A valid body with up to three fields put in, put wrong or taken out, in it or in one of its messages."""
    body = dict(draw(prompt_forms | message_forms))
    for _ in range(draw(st.integers(1, 3))):
        inside = body.get("messages")
        target = body
        if isinstance(inside, list) and inside and draw(st.booleans()):
            index = draw(st.integers(0, len(inside) - 1))
            if draw(st.booleans()) or not isinstance(inside[index], dict):
                inside[index] = draw(values)
                continue
            target = inside[index] = dict(inside[index])
        if draw(st.booleans()) and target:
            del target[draw(st.sampled_from(sorted(target)))]
        else:
            name = draw(known_names | st.sampled_from(["role", "content"]))
            target[name] = draw(values | st.lists(messages, max_size=2))
    return body


bodies: st.SearchStrategy[Any] = st.one_of(prompt_forms, message_forms, mutated(), mutated(), values)


@given(bodies)
@settings(max_examples=500, deadline=None)
def test_the_verdict_is_the_reference_s_and_no_error_quotes_a_value(generated: Any) -> None:
    body = orjson.loads(orjson.dumps(generated))
    is_valid = SCHEMA.is_valid(body)
    assert is_valid == REFERENCE.is_valid(body)
    found = SCHEMA.problems(body)
    assert is_valid == (not found), "a bad request has a reason, and a good one has none"
    for problem in found:
        assert MARK not in problem.message
        assert len(problem.message) < 400


def test_the_generated_requests_are_of_both_kinds() -> None:
    """Else the agreement above would mean little."""
    seen = {True: 0, False: 0}

    @given(bodies)
    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    def count(body: Any) -> None:
        seen[REFERENCE.is_valid(body)] += 1

    count()
    assert min(seen.values()) > 40, seen


# other cards


def test_a_schema_without_forms_is_its_own_only_form() -> None:
    schema = RequestSchema({"properties": {"prompt": {"type": "string"}}, "required": ["prompt"]})
    assert schema.is_valid({"prompt": "x"})
    assert schema.problems({"prompt": 5}) == [
        Problem("invalid_request", "prompt", 'the value is not of type "string"')
    ]
    assert schema.problems({}) == [Problem("invalid_request", "", '"prompt" is a required property')]


def test_of_several_forms_under_any_of_more_than_one_may_hold() -> None:
    schema = RequestSchema(
        {
            "anyOf": [
                {"properties": {"prompt": {"type": "string"}}, "required": ["prompt"]},
                {"properties": {"messages": {"type": "array"}}, "required": ["messages"]},
            ]
        }
    )
    assert schema.is_valid({"prompt": "x", "messages": []})
    assert [problem.message for problem in schema.problems({})] == ["a request needs prompt or messages"]
    assert [problem.path for problem in schema.problems({"prompt": 5})] == ["prompt"]


def test_the_known_fields_are_those_of_all_forms() -> None:
    assert SCHEMA.known_fields == {"prompt", "raw", "stream", "max_tokens", "messages"}


# names and paths


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("promt", "prompt"),
        ("max_token", "max_tokens"),
        ("message", "messages"),
        ("customid", "custom_id"),
        ("qwerty", None),
        ("", None),
    ],
)
def test_an_unknown_field_s_nearest_is_one_that_looks_like_it(name: str, nearest: str | None) -> None:
    assert SCHEMA.nearest_field(name) == nearest


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        ([], ""),
        (["prompt"], "prompt"),
        (["messages", 2, "role"], "messages[2].role"),
        ([0, 1], "[0][1]"),
        (["a\nb\x1b[2J"], "a\\nb\\u001b[2J"),
        (["x" * 500], "x" * 100 + "…"),
        (["naïve 日本"], "naïve 日本"),
    ],
)
def test_a_path_reads_as_one_writes_it_and_does_nothing_to_a_terminal(
    parts: list[str | int], path: str
) -> None:
    assert format_path(parts) == path
