"""`promptmill validate` and the reference implementation of JSON Schema say the same of every line.

VERDICT_LINES sets how many lines of each card are compared: 20,000, where it is not given.
"""

import json
import math
import os
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from mutation import Mutator

from jobs.cards import Card, find_card, parse_card
from jobs.reader import LineLimits
from jobs.validation import validate

_NUM_LINES = int(os.environ.get("VERDICT_LINES", "20000"))
_LINES_A_BLOCK = 500
_LIMITS = LineLimits(max_bytes=1024 * 1024, max_depth=100)
_CARDS = Path(__file__).parents[1] / "cards"
HERMES = find_card(Path("no-home"), "hermes-2-pro-mistral-7b")
VERSE, ACCOUNT = (parse_card((_CARDS / f"{name}.yaml").read_text(), name) for name in ("verse", "account"))
# What the strategy draws rarely or never: longest texts, and the form that another card of these would want.
_PLAIN = [
    {"prompt": "x", "style": "plain", "user": "a@b.c", "max_tokens": 9},
    {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "user": "ab", "top_k": 5, "seed": 7},
    {
        "prompt": "x" * 20,
        "raw": True,
        "user": "ab",
        "temperature": 0.5,
        "tag": ["a", ["b"]],
        "stop": [1, True],
    },
    {"prompt": "x", "style": 7},
]


def reference(card: Card) -> Any:
    kind = jsonschema.validators.validator_for(card.input_schema, default=jsonschema.Draft202012Validator)
    return kind(card.input_schema)


def codes_of(card: Card, lines: list[bytes]) -> list[set[str]]:
    """The codes that `validate` has for each line."""
    with tempfile.TemporaryDirectory() as folder:
        path, errors = Path(folder) / "in.jsonl", Path(folder) / "errors.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        report = validate(card, str(path), _LIMITS, errors_path=str(errors))
        codes: list[set[str]] = [set() for _ in lines]
        for error in map(json.loads, errors.read_text().splitlines()):
            codes[error["line"] - 1].add(error["code"])
    assert report.num_lines == len(lines)
    assert report.num_invalid == sum(map(bool, codes))
    return codes


def read(line: bytes) -> tuple[bool, Any]:
    """Whether a line is JSON that a program can hold, and its value; whole numbers of more than 64 bits are doubles,
    as in the parser of `validate` (RFC 8259, section 6, warns of them)."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    def finite(text: str) -> float:
        if math.isinf(value := float(text)):
            refuse(text)
        return value

    def whole(text: str) -> float:
        value = finite(text)
        return int(text) if -(2.0**63) <= value < 2.0**64 else value

    try:
        value = json.loads(line.decode(), parse_constant=refuse, parse_float=finite, parse_int=whole)
        # a lone half of a character in \u escapes: no UTF-8 text has it
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return False, None
    return True, value


def compare(card: Card, validator: Any, lines: list[bytes], seen: Counter[str]) -> None:
    for line, codes in zip(lines, codes_of(card, lines), strict=True):
        is_json, value = read(line)
        assert ("invalid_json" in codes) == (not is_json), (line, codes)
        if is_json:
            is_valid = validator.is_valid(value)
            assert ("invalid_request" in codes) == (not is_valid), (line, codes)
            seen["valid" if is_valid else "refused"] += 1
            seen["beyond the schema"] += is_valid and bool(codes)
        else:
            seen["not JSON"] += 1


@pytest.mark.parametrize("card", [HERMES, VERSE, ACCOUNT], ids=lambda card: card.name)
def test_the_verdict_is_the_reference_s(card: Card) -> None:
    seen: Counter[str] = Counter()
    validator = reference(card)

    @settings(
        max_examples=max(1, _NUM_LINES // _LINES_A_BLOCK),
        deadline=None,
        database=None,
        # no smaller example is looked for: the line that fails is named
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(from_schema(card.input_schema), min_size=2, max_size=4), st.integers(0, 2**32))
    def check(bodies: list[Any], seed: int) -> None:
        lines = Mutator(card.input_schema, seed).lines([*bodies, *_PLAIN], _LINES_A_BLOCK - 1)
        # a first line beyond doubt: by it a file's form may be told
        whole = [b'{"prompt": "x"}', *(line for line in lines if line.strip(b" \t\r\n"))]
        compare(card, validator, whole, seen)

    check()
    print(f"{card.name}: {dict(seen)}")
    assert seen.total() > 0.9 * _NUM_LINES
    for kind in ("valid", "refused", "not JSON", "beyond the schema"):
        assert seen[kind] > seen.total() / 200, (kind, seen)


def test_the_three_cards_differ() -> None:
    assert len({json.dumps(card.input_schema) for card in (HERMES, VERSE, ACCOUNT)}) == 3
    takes = [partial(reference(card).is_valid) for card in (HERMES, VERSE, ACCOUNT)]
    assert [take({"prompt": "x", "style": 7}) for take in takes] == [True, True, False]
    assert [take({"prompt": "x", "user": "no address"}) for take in takes] == [True, False, True]
    assert [take({"prompt": "x" * 41, "max_tokens": 1.5}) for take in takes] == [False, False, False]
