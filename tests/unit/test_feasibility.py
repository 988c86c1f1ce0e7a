"""What a schema allows and the engine cannot do is refused under its own code, where it would have an effect."""

from pathlib import Path
from typing import Any

import pytest

from jobs.cards import Limits, find_card
from jobs.feasibility import Feasibility
from jobs.schema import RequestSchema

LIMITS = Limits(max_input_length=3072, max_total_tokens=4096, max_batch_prefill_tokens=8192)
HERMES = RequestSchema(find_card(Path("no-home"), "hermes-2-pro-mistral-7b").input_schema)
NAMES = ("prompt", "messages", "max_tokens", "raw", "stream")
# A schema that knows the fields and asks nothing of them.
OPEN = RequestSchema({"properties": {name: {} for name in NAMES}})
USER = {"role": "user", "content": "hi"}


def found(schema: RequestSchema, body: dict[str, Any]) -> list[tuple[str, str]]:
    assert schema.is_valid(body)
    feasibility = Feasibility(schema, LIMITS)
    problems = feasibility.problems(body)
    assert not (problems and feasibility.is_certain(body)), "the quick way would have let it pass"
    return [(problem.code, problem.path) for problem in problems]


@pytest.mark.parametrize(
    ("body", "problems"),
    [
        ({"prompt": "x", "max_tokens": 0}, [("invalid_parameter", "max_tokens")]),
        ({"prompt": "x", "max_tokens": -0.0}, [("invalid_parameter", "max_tokens")]),
        ({"prompt": "x", "max_tokens": -1e300}, [("invalid_parameter", "max_tokens")]),
        ({"prompt": "x", "max_tokens": 4096}, [("max_total_tokens_exceeded", "max_tokens")]),
        ({"prompt": "x", "max_tokens": 2**64 - 1}, [("max_total_tokens_exceeded", "max_tokens")]),
        ({"prompt": "x", "max_tokens": 1e300}, [("max_total_tokens_exceeded", "max_tokens")]),
        ({"messages": []}, [("invalid_messages", "messages")]),
        (
            {"messages": [], "max_tokens": 0},
            [("invalid_messages", "messages"), ("invalid_parameter", "max_tokens")],
        ),
        ({"prompt": "x" * 4097, "messages": []}, [("invalid_messages", "messages")]),
    ],
    ids=lambda value: repr(value)[-40:],
)
def test_what_the_seed_s_schema_allows_and_no_engine_does(body: dict[str, Any], problems: list[Any]) -> None:
    assert found(HERMES, body) == problems


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "", "max_tokens": 4095},
        {"prompt": "x", "max_tokens": 256.0},
        {"prompt": "x", "messages": 5},
        {"prompt": "x", "messages": [{"role": 5}]},
        {"prompt": 5, "messages": [USER]},
        {"messages": [USER], "raw": "of the other form"},
        {"messages": [{**USER, "role": "a role that only the template can tell"}]},
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_field_of_the_form_that_is_not_meant_has_no_effect(body: dict[str, Any]) -> None:
    assert found(HERMES, body) == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"prompt": ["x"]}, ("invalid_parameter", "prompt")),
        ({"prompt": "x", "max_tokens": 256.5}, ("invalid_parameter", "max_tokens")),
        ({"prompt": "x", "max_tokens": True}, ("invalid_parameter", "max_tokens")),
        ({"prompt": "x", "max_tokens": "256"}, ("invalid_parameter", "max_tokens")),
        ({"prompt": "x", "raw": 1}, ("invalid_parameter", "raw")),
        ({"prompt": "x", "stream": "yes"}, ("invalid_parameter", "stream")),
        ({}, ("invalid_messages", "")),
        ({"prompt": None, "messages": {"role": "user"}}, ("invalid_messages", "")),
        ({"messages": [USER, "hi"]}, ("invalid_messages", "messages[1]")),
        ({"messages": [USER, {"content": "x"}]}, ("invalid_messages", "messages[1].role")),
        ({"messages": [{"role": None}]}, ("invalid_messages", "messages[0].role")),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_schema_that_asks_nothing_lets_nothing_through_that_would_break(
    body: dict[str, Any], problem: tuple[str, str]
) -> None:
    assert found(OPEN, body) == [problem]


def test_null_is_as_good_as_nothing_where_the_schema_allows_it() -> None:
    assert (
        found(OPEN, {"prompt": "x", "messages": None, "max_tokens": None, "raw": None, "stream": None}) == []
    )


def test_a_field_that_the_schema_does_not_know_has_no_effect() -> None:
    assert (
        found(RequestSchema({"properties": {"prompt": {}}}), {"prompt": "x", "max_tokens": 0, "raw": 5}) == []
    )
