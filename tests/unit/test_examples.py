"""The example requests: right for the card, and varied enough to show what promptmill does."""

import json
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples/requests.jsonl"
CARDS = ("hermes-2-pro-mistral-7b", "smollm2-135m-instruct")
LINES = EXAMPLES.read_text("utf-8").splitlines()
REQUESTS: list[dict[str, Any]] = [json.loads(line) for line in LINES]
# what a request may hold; the card's schema lets any other name pass, a misspelt one too
FIELDS = {
    "custom_id",
    "prompt",
    "messages",
    "raw",
    "stream",
    "max_tokens",
    "temperature",
    "seed",
}


@cache
def schema_of(card: str) -> dict[str, Any]:
    page = yaml.safe_load((ROOT / f"jobs/cards/{card}.yaml").read_text("utf-8"))
    schema: dict[str, Any] = json.loads(page["json_schema"]["input"])
    return schema


def text_of(request: dict[str, Any]) -> str:
    if "prompt" in request:
        return str(request["prompt"])
    return " ".join(message["content"] for message in request["messages"])


def script_of(text: str) -> str:
    """The script most letters of `text` belong to, by their Unicode names."""
    names = [unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha()]
    return max(set(names), key=names.count)


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("index", range(len(LINES)))
def test_every_line_satisfies_the_card(card: str, index: int) -> None:
    jsonschema.validate(REQUESTS[index], schema_of(card))
    assert set(REQUESTS[index]) <= FIELDS


def test_there_are_about_forty_of_both_forms() -> None:
    assert 35 <= len(REQUESTS) <= 45
    assert sum("prompt" in request for request in REQUESTS) >= 10
    assert sum("messages" in request for request in REQUESTS) >= 10


def test_raw_and_stream_are_shown_in_both_values() -> None:
    for field in ("raw", "stream"):
        assert {True, False} <= {request.get(field) for request in REQUESTS}
    raw = [request["prompt"] for request in REQUESTS if request.get("raw")]
    assert any("<|im_start|>" in prompt for prompt in raw)
    assert any("<|im_start|>" not in prompt for prompt in raw)


def test_custom_ids_are_unique_and_some_lines_have_none() -> None:
    given = [request["custom_id"] for request in REQUESTS if "custom_id" in request]
    assert len(given) == len(set(given))
    assert 0 < len(REQUESTS) - len(given) < len(given)


def test_conversations_have_system_messages_and_several_turns() -> None:
    roles = [
        [message["role"] for message in request["messages"]] for request in REQUESTS if "messages" in request
    ]
    assert sum("system" in turn for turn in roles) >= 4
    assert sum(turn.count("user") > 1 for turn in roles) >= 2


def test_several_languages_and_scripts_are_there() -> None:
    scripts = {script_of(text_of(request)) for request in REQUESTS}
    assert {"LATIN", "CJK", "DEVANAGARI", "ARABIC", "CYRILLIC"} <= scripts
    latin = [text_of(request) for request in REQUESTS if script_of(text_of(request)) == "LATIN"]
    accented = [text for text in latin if not all(map(str.isascii, filter(str.isalpha, text)))]
    assert len(accented) >= 4


def test_the_output_is_small_enough_to_try_and_its_lengths_differ() -> None:
    lengths = [request["max_tokens"] for request in REQUESTS]
    assert sum(lengths) <= 2_500
    assert min(lengths) == 8
    assert max(lengths) == 160
    assert len(set(lengths)) >= 8


def test_the_question_that_the_readme_asks_is_there() -> None:
    assert {
        "custom_id": "capital-of-france",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 32,
    } in REQUESTS
