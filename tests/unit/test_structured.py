"""response_format: its shape, and schemas that no completion could be held to, are found before anything runs."""

import sys
from typing import Any

import pytest

from jobs import structured
from jobs.generation import check_sampling
from jobs.schema import Problem
from jobs.structured import answer_schema, check_response_format

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def json_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def only(body: dict[str, Any]) -> Problem:
    (problem,) = check_sampling(body)
    return problem


@pytest.mark.parametrize(
    ("response_format", "text"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, '{"type":"object"}'),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "null"}}},
            '{"type":"null"}',
        ),
        ({"type": "json_schema", "json_schema": {"name": "x", "strict": True}}, "{}"),
        ({"type": "json_schema", "json_schema": {"type": "null"}}, '{"type":"null"}'),
    ],
)
def test_each_form_comes_to_a_schema_or_to_none(response_format: Any, text: str | None) -> None:
    body = {"response_format": response_format}
    assert check_response_format(body) == []
    assert answer_schema(body) == text


@pytest.mark.parametrize(
    "value", ["json_object", [], {}, {"type": "xml"}, {"type": ["text"]}, {"type": None}]
)
def test_an_unknown_form_is_refused(value: Any) -> None:
    problem = only({"response_format": value})
    assert (problem.code, problem.path) == ("invalid_parameter", "response_format.type")


@pytest.mark.parametrize("schema", [True, None, 5, "object", [CITY]])
def test_a_schema_is_an_object(schema: Any) -> None:
    problem = only(json_schema(schema))
    assert (problem.code, problem.path) == ("invalid_parameter", "response_format.json_schema.schema")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "zxq"}, "not a JSON Schema, at type"),
        ({"properties": {"a": {"minLength": -1}}}, "at properties.a.minLength"),
        ({"$ref": "http://localhost/other"}, "a $ref leads nowhere"),
        ({"$ref": "#/$defs/zxq"}, "a $ref leads nowhere"),
    ],
)
def test_what_is_no_whole_schema_is_refused_with_its_place(schema: Any, says: str) -> None:
    problem = only(json_schema(schema))
    assert problem.code == "invalid_parameter"
    assert says in problem.message
    assert "zxq" not in problem.message


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "integer", "minimum": 5, "maximum": 2}, "Unsatisfiable"),
    ],
)
def test_what_the_engine_cannot_hold_a_completion_to_has_its_own_code(schema: Any, says: str) -> None:
    pytest.importorskip("llguidance", reason="it comes with vLLM")
    problem = only(json_schema(schema))
    assert (problem.code, problem.path) == ("unsupported_schema", "response_format.json_schema.schema")
    assert says in problem.message


def test_without_the_backend_only_the_worker_finds_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr(structured, "_find_fault", structured._find_fault.__wrapped__, raising=True)
    assert structured._backend_refusal('{"type": "array", "uniqueItems": true}') is None


def test_the_same_schema_is_looked_at_once_and_a_long_one_is_not_kept() -> None:
    structured._find_fault.cache_clear()
    for _ in range(3):
        assert check_response_format(json_schema(CITY)) == []
        assert check_response_format(json_schema({"description": "x" * 100_000})) == []
    assert structured._find_fault.cache_info().misses == 1
    assert structured._find_fault.cache_info().currsize == 1
