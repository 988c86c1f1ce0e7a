"""Answers against references: what each way to match calls right, and patterns that would run for ever."""

import signal
import time
from typing import Any

import pytest

from jobs.comparison import patterns as pattern_search
from jobs.comparison.patterns import PatternSearch
from jobs.comparison.scores import Match, Reference, is_same_json, passes, reference_of


def _is_right(reference: Any, match: str, answer: str | None) -> bool | None:
    with PatternSearch() as patterns:
        return passes(Reference(reference, (Match(match),)), Match(match), answer, patterns)


@pytest.mark.parametrize(
    ("match", "reference", "answer", "is_right"),
    [
        ("exact", "Paris", " Paris\n", True),
        ("exact", " Paris ", "Paris", True),
        ("exact", "Paris", "paris", False),
        ("exact", "Paris", "Paris.", False),
        ("exact", "", " ", True),
        ("exact", 42, "42", True),
        ("exact", True, "true", True),
        ("contains", "Paris", "It is Paris.", True),
        ("contains", " Paris\n", "It is Paris.", True),
        ("contains", "Paris", "It is Rome.", False),
        ("contains", 4, "the answer is 4.", True),
        ("regex", r"^\d+$", "123", True),
        ("regex", r"^\d+$", "123x", False),
        ("regex", "(?i)paris", "PARIS", True),
        ("regex", "(", "(", None),
        ("regex", 5, "5", None),
        ("json", {"a": 1, "b": [True]}, '{"b": [true], "a": 1.0}', True),
        ("json", {"a": 1}, '```json\n{"a": 1}\n```', True),
        ("json", '{"a": 1}', '{"a":1}', True),
        ("json", {"a": 1}, '{"a": 1, "b": 2}', False),
        ("json", {"a": 1}, "not JSON", False),
        ("json", [], "", False),
        ("json", "not JSON", "not JSON", None),
        ("json", {"a": 1}, "[" * 5_000, False),
    ],
)
def test_each_way_to_match(match: str, reference: Any, answer: str, is_right: bool | None) -> None:  # noqa: FBT001  pytest's
    assert _is_right(reference, match, answer) is is_right


@pytest.mark.parametrize("match", list(Match))
def test_no_answer_is_a_wrong_one(match: str) -> None:
    assert _is_right("{}", match, None) is False


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (None, None, True),
        (None, 0, False),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ({"a": {"b": [1]}}, {"a": {"b": [1]}}, True),
        ({"a": 1}, {"b": 1}, False),
        ({}, [], False),
        ("1", 1, False),
    ],
)
def test_same_as_json(one: Any, other: Any, is_same: bool) -> None:  # noqa: FBT001  pytest's
    assert is_same_json(one, other) is is_same
    assert is_same_json(other, one) is is_same


@pytest.mark.parametrize(
    ("request_line", "value", "matches"),
    [
        ({"reference": "x"}, "x", ["exact", "contains"]),
        ({"metadata": {"reference": "x"}}, "x", ["exact", "contains"]),
        ({"metadata": {"reference": "x"}, "reference": "y"}, "x", ["exact", "contains"]),
        ({"metadata": {"reference": None}, "reference": "y"}, "y", ["exact", "contains"]),
        ({"metadata": "text", "reference": "y"}, "y", ["exact", "contains"]),
        ({"metadata": {"match": "regex"}, "reference": "y"}, "y", ["regex"]),
        ({"reference": "y", "match": ["json", "exact", "json"]}, "y", ["json", "exact"]),
        ({"reference": "y", "match": "fuzzy"}, "y", []),
        ({"reference": "y", "match": ["exact", 5]}, "y", []),
        ({"reference": {"a": 1}}, {"a": 1}, ["json"]),
        ({"reference": [1]}, [1], ["json"]),
        ({"reference": '{"a": 1}'}, '{"a": 1}', ["exact", "contains", "json"]),
        ({"reference": "[not JSON"}, "[not JSON", ["exact", "contains"]),
        ({"reference": 4}, 4, ["exact", "contains"]),
        ({"reference": False}, False, ["exact", "contains"]),
    ],
)
def test_where_a_reference_stands_and_how_it_is_matched(
    request_line: dict[str, Any], value: Any, matches: list[str]
) -> None:
    reference = reference_of(request_line)
    assert reference is not None
    assert (reference.value, list(reference.matches)) == (value, matches)


@pytest.mark.parametrize(
    "line", [{}, {"reference": None}, {"metadata": {}}, {"metadata": {"match": "exact"}}]
)
def test_most_requests_have_none(line: dict[str, Any]) -> None:
    assert reference_of(line) is None


# --- patterns that would run for ever ----------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["(a+)+$", "(?:a|a)*b", "a*a*a*a*a*a*b", "(.*)*x(.*)*y"])
def test_a_pattern_that_would_run_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.setattr(pattern_search, "_LIMIT_S", 0.02)
    with PatternSearch() as patterns:
        began = time.process_time()
        assert patterns.is_found(pattern, "a" * 3_000 + "!") is None
        assert time.process_time() - began < 2
        assert patterns.num_slow == 1
        # the others go on, and this one is not tried again
        assert patterns.is_found("a!", "aa!") is True
        monkeypatch.setattr(pattern_search, "_LIMIT_S", 1_000)
        assert patterns.is_found(pattern, "a" * 3_000 + "!") is None


def test_after_many_slow_patterns_none_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern_search, "_LIMIT_S", 0.01)
    monkeypatch.setattr(pattern_search, "_MAX_SLOW", 2)
    with PatternSearch() as patterns:
        for end in "xy":
            assert patterns.is_found(f"(a+)+{end}", "a" * 50) is None
        assert patterns.is_found("a", "a") is None


@pytest.mark.parametrize(
    ("pattern", "text"), [("a" * 1_001, "a"), ("a", "a" * 32_769), ("(" * 900, "a"), ("a{99999999999}", "a")]
)
def test_what_is_too_long_or_no_pattern_cannot_be_said(pattern: str, text: str) -> None:
    with PatternSearch() as patterns:
        assert patterns.is_found(pattern, text) is None
        assert patterns.num_slow == 0


def test_the_signal_and_the_timer_are_given_back() -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    with PatternSearch() as patterns:
        patterns.is_found("a", "a")
        assert signal.getsignal(signal.SIGVTALRM) is not before
        assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    assert signal.getsignal(signal.SIGVTALRM) is before
