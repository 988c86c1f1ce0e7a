"""A request as the code works with it: which form is meant, which defaults hold, and what the engine is told."""

from pathlib import Path
from typing import Any

import pytest

from jobs.cards import find_card
from jobs.generation import (
    DEFAULT_MAX_TOKENS,
    SAMPLING_FIELDS,
    Generation,
    check_sampling,
    parse_generation,
)
from jobs.schema import RequestSchema

SCHEMA = RequestSchema(find_card(Path("no-home"), "hermes-2-pro-mistral-7b").input_schema)
USER = {"role": "user", "content": "hi"}


def parse(body: dict[str, Any], card_sampling: dict[str, Any] | None = None) -> Generation:
    assert SCHEMA.is_valid(body)
    return parse_generation(SCHEMA, body, card_sampling or {})


def test_a_prompt_gets_the_card_s_defaults() -> None:
    assert parse({"prompt": "x"}) == Generation(
        prompt="x", messages=None, raw=False, stream=False, max_tokens=256, sampling={}
    )


def test_messages_get_the_card_s_defaults() -> None:
    assert parse({"messages": [USER]}) == Generation(
        prompt=None, messages=[USER], raw=False, stream=False, max_tokens=256, sampling={}
    )


def test_what_the_request_says_goes_before_the_defaults() -> None:
    generation = parse({"prompt": "x", "raw": True, "stream": True, "max_tokens": 5})
    assert (generation.raw, generation.stream, generation.max_tokens) == (True, True, 5)


@pytest.mark.parametrize(
    ("body", "prompt", "messages"),
    [
        ({"prompt": "x", "messages": 5}, "x", None),
        ({"prompt": "x", "messages": [{"role": "user"}]}, "x", None),
        ({"prompt": 5, "messages": [USER]}, None, [USER]),
        ({"prompt": "", "raw": True}, "", None),
        ({"messages": []}, None, []),
    ],
)
def test_the_form_that_is_valid_is_the_one_that_is_meant(
    body: dict[str, Any], prompt: str | None, messages: list[Any] | None
) -> None:
    generation = parse(body)
    assert (generation.prompt, generation.messages) == (prompt, messages)


def test_a_field_of_the_other_form_has_no_effect() -> None:
    assert parse({"messages": [USER], "raw": True}).raw is False


def test_messages_keep_what_the_schema_does_not_know() -> None:
    message = {**USER, "name": "ada", "tool_calls": [{"id": 1}]}
    assert parse({"messages": [message]}).messages == [message]


@pytest.mark.parametrize(
    ("value", "max_tokens"), [(256.0, 256), (1, 1), (10**18, 10**18), (1e300, int(1e300))]
)
def test_max_tokens_is_a_whole_number_however_it_is_written(value: float, max_tokens: int) -> None:
    generation = parse({"prompt": "x", "max_tokens": value})
    assert generation.max_tokens == max_tokens
    assert type(generation.max_tokens) is int


def test_a_card_whose_schema_gives_no_defaults_has_those_of_the_format() -> None:
    schema = RequestSchema({"properties": {"prompt": {"type": "string"}}, "required": ["prompt"]})
    generation = parse_generation(schema, {"prompt": "x", "max_tokens": 5, "stream": True}, {})
    assert (generation.max_tokens, generation.stream) == (DEFAULT_MAX_TOKENS, False), "it knows neither field"


def test_a_form_that_refers_to_shared_definitions_is_understood() -> None:
    schema = RequestSchema(
        {
            "$defs": {"text": {"type": "string"}, "count": {"type": "integer"}},
            "oneOf": [
                {
                    "properties": {
                        "prompt": {"$ref": "#/$defs/text"},
                        "max_tokens": {"$ref": "#/$defs/count", "default": 9},
                    },
                    "required": ["prompt"],
                }
            ],
        }
    )
    assert parse_generation(schema, {"prompt": "x"}, {}).max_tokens == 9


# sampling


def test_sampling_is_what_the_request_gives_and_no_more() -> None:
    given = {"temperature": 0.5, "top_k": 40, "stop": ["###"], "seed": 7}
    assert parse({"prompt": "x", **given, "unknown": 1, "custom_id": "a"}).sampling == given


def test_the_request_s_sampling_goes_before_the_card_s() -> None:
    generation = parse({"prompt": "x", "temperature": 0.7}, {"temperature": 0, "top_p": 0.9})
    assert generation.sampling == {"temperature": 0.7, "top_p": 0.9}


def test_null_is_as_good_as_nothing() -> None:
    assert parse({"prompt": "x", "temperature": None, "stop": None}, {"temperature": 0}).sampling == {
        "temperature": 0
    }


@pytest.mark.parametrize("name", ["max_tokens", "raw", "stream"])
def test_null_means_the_default_where_a_schema_allows_it(name: str) -> None:
    schema = RequestSchema({"properties": {"prompt": {}, name: {}}, "required": ["prompt"]})
    assert parse_generation(schema, {"prompt": "x", name: None}, {}) == parse_generation(
        schema, {"prompt": "x"}, {}
    )


def test_fields_beside_the_forms_belong_to_each_of_them() -> None:
    schema = RequestSchema(
        {
            "properties": {"prompt": {}, "messages": {}, "max_tokens": {"default": 7}},
            "oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}],
        }
    )
    generation = parse_generation(schema, {"messages": [USER]}, {})
    assert (generation.messages, generation.max_tokens) == ([USER], 7)
    assert parse_generation(schema, {"prompt": "x", "max_tokens": 9}, {}).max_tokens == 9


def test_zero_is_a_value() -> None:
    assert parse({"prompt": "x", "temperature": 0, "top_k": 0, "seed": 0}).sampling == {
        "temperature": 0,
        "top_k": 0,
        "seed": 0,
    }


def test_the_card_s_own_sampling_is_not_changed() -> None:
    card_sampling = {"temperature": 0}
    assert parse({"prompt": "x", "temperature": 1}, card_sampling).sampling == {"temperature": 1}
    assert card_sampling == {"temperature": 0}


@pytest.mark.parametrize("name", sorted(SAMPLING_FIELDS))
def test_no_sampling_field_takes_an_object(name: str) -> None:
    (problem,) = check_sampling({name: {"a": "zxq"}})
    assert (problem.code, problem.path.split(".")[0]) == ("invalid_parameter", name)
    assert "zxq" not in problem.message


def test_each_bad_field_is_one_problem_with_its_own_name() -> None:
    problems = check_sampling({"temperature": "zxq", "stop": [1, 2], "top_p": 0.5, "seed": 1.5})
    assert [problem.path for problem in problems] == ["temperature", "seed", "stop"]


def test_a_body_without_sampling_has_no_problem() -> None:
    assert check_sampling({"prompt": "x", "custom_id": 5}) == []
