"""Requests shown as examples: what was asked and answered, cut to a length that a report can hold, and the diff."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from db.outcomes import Outcome
from jobs.comparison.scores import Match, Reference
from jobs.shown.text import printable_lines

_MAX_CHARS = 2_000
_MAX_PROMPT_CHARS = 500
_CUT = " […]"
_NO_LINES = "@@ they differ in white space, or after what is shown @@"


@dataclass(frozen=True)
class Example:
    """`flips` says for each score that changed whether the answer is right now. An answer is None for a request that
    did not succeed; its error's code is then in `status`."""

    index_a: int
    index_b: int
    custom_id: str | None
    prompt: str
    reference: str | None
    status_a: str
    status_b: str
    answer_a: str | None
    answer_b: str | None
    flips: Mapping[Match, bool]

    @property
    def title(self) -> str:
        where = f"line {self.index_a + 1}"
        if self.index_a != self.index_b:
            where += f" in A, {self.index_b + 1} in B"
        return where if self.custom_id is None else f"{shown(self.custom_id)} ({where})"

    @property
    def change(self) -> str:
        """The flips in words, else the statuses where these changed."""
        if self.flips:
            return ", ".join(
                f"{match}: {'now right' if up else 'now wrong'}" for match, up in self.flips.items()
            )
        return "" if self.status_a == self.status_b else f"{self.status_a} → {self.status_b}"


def example_of(
    a: Outcome,
    b: Outcome,
    request: Mapping[str, Any],
    reference: Reference | None,
    flips: Mapping[Match, bool],
    answers_a: Sequence[str],
    answers_b: Sequence[str],
) -> Example:
    return Example(
        a.index,
        b.index,
        b.custom_id if b.custom_id is not None else a.custom_id,
        _cut(_prompt_of(request), _MAX_PROMPT_CHARS),
        None if reference is None else _cut(reference.text, _MAX_PROMPT_CHARS),
        _status_of(a),
        _status_of(b),
        _joined(answers_a),
        _joined(answers_b),
        dict(flips),
    )


def _status_of(outcome: Outcome) -> str:
    return (
        outcome.status.value
        if outcome.error_code is None
        else f"{outcome.status.value}: {outcome.error_code}"
    )


def _prompt_of(request: Mapping[str, Any]) -> str:
    """The prompt, or what the last message says."""
    prompt = request.get("prompt")
    if isinstance(messages := request.get("messages"), list) and messages:
        last = messages[-1]
        prompt = last.get("content") if isinstance(last, dict) else None
    return prompt if isinstance(prompt, str) else ""


def _joined(answers: Sequence[str]) -> str | None:
    """Several choices one under the other."""
    if not answers:
        return None
    if len(answers) == 1:
        return _cut(answers[0], _MAX_CHARS)
    numbered = (f"[choice {number}]\n{_cut(text, _MAX_CHARS)}" for number, text in enumerate(answers))
    return _cut("\n".join(numbered), 2 * _MAX_CHARS)


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[:max_chars] + _CUT


def shown(text: str) -> str:
    """A text of a user with its lines and no control characters, which a terminal would obey."""
    return "\n".join(printable_lines(text))


def diff_lines(example: Example) -> list[str]:
    """By lines: each begins with `-` (A's), `+` (B's) or a space, or is an `@@` mark between them."""
    a, b = ((answer or "").splitlines() for answer in (example.answer_a, example.answer_b))
    found = list(difflib.unified_diff(a, b, n=1, lineterm=""))[2:]
    if not found and example.answer_a != example.answer_b:
        return [_NO_LINES]
    return [line if line.startswith("@@") else line[:1] + shown(line[1:]) for line in found]


def diff_words(example: Example) -> list[tuple[str, str]]:
    """By words: ("=", text), ("-", A's) and ("+", B's)."""
    a, b = (re.findall(r"\s+|[^\s]+", shown(answer or "")) for answer in (example.answer_a, example.answer_b))
    parts: list[tuple[str, str]] = []
    for kind, a_from, a_to, b_from, b_to in difflib.SequenceMatcher(None, a, b).get_opcodes():
        if kind == "equal":
            parts.append(("=", "".join(a[a_from:a_to])))
            continue
        parts += [
            (sign, text)
            for sign, text in (("-", "".join(a[a_from:a_to])), ("+", "".join(b[b_from:b_to])))
            if text
        ]
    return parts
