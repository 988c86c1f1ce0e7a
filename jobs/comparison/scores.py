"""Answers held against the references that requests carry: exact, contains, regex, JSON-equal."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from jobs.comparison.patterns import PatternSearch

_FENCE = re.compile(r"\A```[A-Za-z]*\n(.*)\n```\Z", re.DOTALL)


class Match(StrEnum):
    """How an answer is held against a reference."""

    EXACT = "exact"
    CONTAINS = "contains"
    REGEX = "regex"
    JSON = "json"


@dataclass(frozen=True)
class Reference:
    """What a request should be answered. No `matches`: what was asked for is none.

    White space around answer and reference does not count, but for regex.
    """

    value: Any
    matches: tuple[Match, ...]

    @property
    def text(self) -> str:
        return self.value.strip() if isinstance(self.value, str) else orjson.dumps(self.value).decode()


def reference_of(request: Mapping[str, Any]) -> Reference | None:
    """From `metadata.reference`, else from the field `reference`; `match` stands beside either."""
    value = next((one for one in _named(request, "reference") if one is not None), None)
    if value is None:
        return None
    said = next((one for one in _named(request, "match") if one is not None), None)
    return Reference(value, _default_matches(value) if said is None else _matches(said))


def _named(request: Mapping[str, Any], name: str) -> Iterator[Any]:
    if isinstance(metadata := request.get("metadata"), dict):
        yield metadata.get(name)
    yield request.get(name)


def _matches(said: Any) -> tuple[Match, ...]:
    words = said if isinstance(said, list) else [said]
    known = {match.value for match in Match}
    if not all(isinstance(word, str) and word in known for word in words):
        return ()
    return tuple(dict.fromkeys(Match(word) for word in words))


def _default_matches(value: Any) -> tuple[Match, ...]:
    """A text is no pattern unless its request says so; what is JSON is compared as JSON."""
    if isinstance(value, dict | list):
        return (Match.JSON,)
    if isinstance(value, str):
        is_document = value.strip()[:1] in ("{", "[") and _parsed(value) is not _NOT_JSON
        return (Match.EXACT, Match.CONTAINS, *([Match.JSON] if is_document else []))
    return (Match.EXACT, Match.CONTAINS)


def passes(reference: Reference, match: Match, answer: str | None, patterns: PatternSearch) -> bool | None:
    """Whether the answer is right; no answer is a wrong one. None where it cannot be said: see PatternSearch; a
    reference that is no JSON."""
    if answer is None:
        return False
    if match is Match.JSON:
        wanted = _parsed(reference.value) if isinstance(reference.value, str) else reference.value
        if wanted is _NOT_JSON:
            return None
        return is_same_json(wanted, _parsed(answer))
    if match is Match.REGEX:
        return patterns.is_found(reference.value, answer) if isinstance(reference.value, str) else None
    if match is Match.EXACT:
        return answer.strip() == reference.text
    return reference.text in answer


_NOT_JSON = object()


def _parsed(text: str) -> Any:
    """The JSON value, also of a text that is fenced as Markdown has it."""
    stripped = text.strip()
    if (fenced := _FENCE.match(stripped)) is not None:
        stripped = fenced[1]
    try:
        return orjson.loads(stripped)
    except orjson.JSONDecodeError:
        return _NOT_JSON


def is_same_json(one: Any, other: Any) -> bool:
    """Equal as JSON: the order of keys does not count, 1 is 1.0, and true is not 1. Values may be nested deeply."""
    pairs = [(one, other)]
    while pairs:
        left, right = pairs.pop()
        if isinstance(left, dict) and isinstance(right, dict):
            if left.keys() != right.keys():
                return False
            pairs.extend((left[key], right[key]) for key in left)
        elif isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                return False
            pairs.extend(zip(left, right, strict=True))
        elif isinstance(left, bool) or isinstance(right, bool):
            if left is not right:
                return False
        elif left != right:
            return False
    return True
