"""Checking an input file line by line against a card, in bounded memory."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from jobs.cards import Card
from jobs.custom_ids import CustomIds, custom_id_problem
from jobs.dialects.cards import ALIAS_FIELDS, adopt_custom_ids
from jobs.dialects.inputs import Inputs
from jobs.dialects.reading import Reading
from jobs.errors_file import open_errors_file
from jobs.feasibility import Feasibility
from jobs.generation import (
    DEFAULT_MAX_TOKENS,
    SAMPLING_FIELDS,
    check_sampling,
)
from jobs.reader import LineLimits, NativeLine, Place, Refused
from jobs.schema import OWN_FIELDS, REFERENCE_FIELDS, Problem, RequestSchema, format_path
from jobs.selection import Selection

if TYPE_CHECKING:
    from jobs.admission import Admission

_NUM_SHOWN = 20
# Different names of unknown fields that are counted one by one: ten million lines may have as many.
_MAX_WARNED_FIELDS = 100
_OTHER_FIELDS = "(others)"
_BYTES_PER_TOKEN = 4
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


@dataclass(frozen=True)
class LineError:
    """A bad line as `validate --json` and `--errors FILE` show it; `line` is its number within its file."""

    line: int
    code: str
    path: str
    message: str
    place: Place

    def as_dict(self) -> dict[str, Any]:
        """With the file where there are several."""
        shown = {"line": self.line, "code": self.code, "path": self.path, "message": self.message}
        return {"file": self.place.file, **shown} if self.place.file else shown


@dataclass(frozen=True)
class FieldWarning:
    """A field that the schema does not know, and that will have no effect."""

    field: str
    count: int
    first_line: int
    nearest: str | None
    place: Place

    @property
    def message(self) -> str:
        hint = f"; did you mean {self.nearest}?" if self.nearest else ""
        lines = f"{self.count:,} lines" if self.count > 1 else "1 line"
        return f"unknown field {self.field} in {lines}, first in {self.place}: it has no effect{hint}"

    def as_dict(self) -> dict[str, Any]:
        shown = {
            "field": self.field,
            "count": self.count,
            "first_line": self.first_line,
            "nearest": self.nearest,
            "message": self.message,
        }
        return {"file": self.place.file, **shown} if self.place.file else shown


@dataclass(slots=True)  # there are millions: a frozen one takes four times as long to make
class CheckedLine:
    """One line. `body` is its JSON text, None when it is bad; `num_tokens` are the prompt's and completion's at most,
    an estimate without an admission."""

    index: int
    number: int
    custom_id: str | None
    body: str | None
    num_tokens: int
    problems: tuple[Problem, ...]


@dataclass
class Report:
    """What a check found; `errors` holds the first 20, the errors file all of them. `tokens_checked` says whether
    lines were held against the token limits too; `notes` are warnings of no line."""

    num_lines: int = 0
    num_invalid: int = 0
    num_errors: int = 0
    errors: list[LineError] = field(default_factory=list)
    warnings: list[FieldWarning] = field(default_factory=list)
    tokens_checked: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def num_valid(self) -> int:
        return self.num_lines - self.num_invalid

    @property
    def is_valid(self) -> bool:
        return self.num_invalid == 0 and self.num_lines > 0

    def as_dict(self) -> dict[str, Any]:
        shown = {
            "lines": self.num_lines,
            "valid": self.num_valid,
            "invalid": self.num_invalid,
            "errors": [error.as_dict() for error in self.errors],
            "warnings": [warning.as_dict() for warning in self.warnings],
            "tokens_checked": self.tokens_checked,
        }
        return {**shown, "notes": self.notes} if self.notes else shown


class _Writable(Protocol):
    def write(self, text: str, /) -> object: ...


class Source(Protocol):
    """Lines as the card has them, each with a number; what can be told of one is told before the next block."""

    def blocks(self, max_line_bytes: int, /) -> Iterable[Sequence[NativeLine]]: ...
    def place(self, number: int, /) -> Place: ...
    def explain_path(self, number: int, path: str, /) -> str: ...


class LineChecker:
    """Checks the lines of one file, and keeps the report. `strict` refuses fields that the schema does not know."""

    def __init__(
        self,
        card: Card,
        limits: LineLimits,
        *,
        strict: bool = False,
        errors_file: _Writable | None = None,
        sampling: Mapping[str, Any] | None = None,
        admission: "Admission | None" = None,
    ) -> None:
        """`sampling`: the job's defaults."""
        self.report = Report(tokens_checked=admission is not None)
        self._admission = admission
        defaults = {**card.sampling, **(sampling or {})}
        self._check_sampling = partial(check_sampling, defaults=defaults)
        self._max_tokens = defaults.get("max_tokens", DEFAULT_MAX_TOKENS)
        self._n = defaults.get("n") or 1
        # bodies without any of them need no closer look
        self._looked_at = SAMPLING_FIELDS | ({"stream"} if self._n > 1 else set())
        self._limits = limits
        self._schema = RequestSchema(card.input_schema)
        self._feasibility = Feasibility(self._schema, card.limits)
        self._max_total_tokens = card.limits.max_total_tokens
        self._has_aliases = self._schema.known_fields.isdisjoint(ALIAS_FIELDS)
        self._known = self._schema.known_fields | OWN_FIELDS | REFERENCE_FIELDS | SAMPLING_FIELDS
        self._strict = strict
        self._errors_file = errors_file
        self._unknown: dict[str, list[int]] = {}

    def check(self, source: Source) -> Iterator[CheckedLine]:
        """Every line that is not blank, in order, good or bad; the report is whole after the last one."""
        custom_ids = CustomIds()
        try:
            for block in source.blocks(self._limits.max_bytes):
                first = self.report.num_lines
                lines = self._check_block(first, block)
                duplicates = custom_ids.find_duplicates((line.custom_id, line.number) for line in lines)
                self.report.num_lines += len(lines)
                for line in lines:
                    if line.number in duplicates:
                        _refuse_duplicate(
                            line, source.place(line.number), source.place(duplicates[line.number])
                        )
                if self._admission is not None:
                    _admit(lines, self._admission)
                for line in lines:
                    if line.problems:
                        line.problems = tuple(
                            replace(problem, path=source.explain_path(line.number, problem.path))
                            for problem in line.problems
                        )
                        self._report(line, source)
                    yield line
        finally:
            custom_ids.close()
            self.report.warnings = [
                FieldWarning(
                    format_path([name]),
                    count,
                    source.place(first).number,
                    self._nearest(name),
                    source.place(first),
                )
                for name, (count, first) in self._unknown.items()
            ]

    def _check_block(self, first_index: int, block: Sequence[NativeLine]) -> list[CheckedLine]:
        """All but duplicates. Most blocks are good as a whole, and found so in half the time of their lines."""
        texts: Sequence[Any] = [data or b"" for _, data in block]
        bodies: Sequence[Any]
        try:
            # what was too long or refused is no JSON either
            bodies = [orjson.loads(text) for text in texts]
        except orjson.JSONDecodeError:
            bodies = []
        if not bodies or any(map(self._is_too_deep, texts)):
            return [
                self._check_line(index, number, data)
                for index, (number, data) in enumerate(block, first_index)
            ]
        numbers = [number for number, _ in block]
        is_good = self._are_good(bodies)
        if not is_good and self._has_aliases and (renamed := adopt_custom_ids(texts, bodies)):
            texts, bodies = renamed
            is_good = self._are_good(bodies)
        lines = enumerate(zip(numbers, texts, bodies, strict=True), first_index)
        if not is_good:
            return [self._check_body(index, number, text, body) for index, (number, text, body) in lines]
        return [
            CheckedLine(
                index, number, body.get("custom_id"), text.decode(), self._estimate_tokens(text, body), ()
            )
            for index, (number, text, body) in lines
        ]

    def _are_good(self, bodies: Sequence[Any]) -> bool:
        """Whether nothing is to be said about any of them, as `_check_body` would find one by one."""
        return (
            set(map(type, bodies)) == {dict}
            and all(map(self._known.issuperset, bodies))
            and all(map(self._schema.is_valid, bodies))
            and all(map(self._feasibility.is_certain, bodies))
            and (all(map(self._looked_at.isdisjoint, bodies)) or not any(map(self._check_sampling, bodies)))
            and not any(custom_id_problem(body.get("custom_id")) for body in bodies)
        )

    def _check_line(self, index: int, number: int, data: bytes | Refused | None) -> CheckedLine:
        if data is None:
            message = f"the line is longer than max_line_bytes ({self._limits.max_bytes:,})"
            return _bad(index, number, Problem("line_limit_exceeded", "", message))
        if isinstance(data, Refused):
            return CheckedLine(index, number, _sound_id(data.custom_id), None, 0, data.problems)
        if self._is_too_deep(data):
            message = f"it is nested more deeply than max_line_depth ({self._limits.max_depth:,})"
            return _bad(index, number, Problem("line_limit_exceeded", "", message))
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            return _bad(index, number, Problem("invalid_json", "", _explain_not_json(data, error)))
        if self._has_aliases and (renamed := adopt_custom_ids([data], [body])):
            (data,), (body,) = renamed
        return self._check_body(index, number, data, body)

    def _check_body(self, index: int, number: int, data: bytes, body: Any) -> CheckedLine:
        problems = self._problems(body, number)
        custom_id = body.get("custom_id") if isinstance(body, dict) else None
        if reason := custom_id_problem(custom_id):
            problems.append(Problem("invalid_custom_id", "custom_id", reason))
            custom_id = None
        if problems:
            return CheckedLine(index, number, custom_id, None, 0, tuple(problems))
        return CheckedLine(index, number, custom_id, data.decode(), self._estimate_tokens(data, body), ())

    def _is_too_deep(self, data: bytes) -> bool:
        # as many brackets at least: nearly no line has them, and no other is looked at any closer
        max_depth = self._limits.max_depth
        return data.count(b"{") + data.count(b"[") > max_depth and _depth(data) > max_depth

    def _estimate_tokens(self, data: bytes, body: dict[str, Any]) -> int:
        max_tokens = body.get("max_tokens")
        if not isinstance(max_tokens, int | float):
            max_tokens = self._max_tokens
        num_tokens = min(len(data) // _BYTES_PER_TOKEN + int(max_tokens), self._max_total_tokens)
        return num_tokens * (body.get("n") or self._n)

    def _problems(self, body: Any, number: int) -> list[Problem]:
        if not self._schema.is_valid(body):
            return self._schema.problems(body)
        if not isinstance(body, dict):
            return [Problem("invalid_json", "", "a request is a JSON object")]
        problems = self._feasibility.problems(body) + self._check_sampling(body)
        if not self._known.issuperset(body):
            # in the line's own order, which a set would not keep
            for name in (name for name in body if name not in self._known):
                self._count_unknown(name, number)
                if self._strict:
                    nearest = self._nearest(name)
                    hint = f"; did you mean {nearest}?" if nearest else ""
                    message = f"the card's schema has no such field{hint}"
                    problems.append(Problem("unknown_field", format_path([name]), message))
        return problems

    def _count_unknown(self, name: str, number: int) -> None:
        if name not in self._unknown and len(self._unknown) >= _MAX_WARNED_FIELDS:
            name = _OTHER_FIELDS
        self._unknown.setdefault(name, [0, number])[0] += 1

    def _nearest(self, name: str) -> str | None:
        return self._schema.nearest_field(name, SAMPLING_FIELDS)

    def _report(self, line: CheckedLine, source: Source) -> None:
        report = self.report
        report.num_invalid += 1
        for problem in line.problems:
            place = source.place(line.number)
            error = LineError(place.number, problem.code, problem.path, problem.message, place)
            report.num_errors += 1
            if len(report.errors) < _NUM_SHOWN:
                report.errors.append(error)
            if self._errors_file is not None:
                self._errors_file.write(json.dumps(error.as_dict(), ensure_ascii=False) + "\n")


def _depth(data: bytes) -> int:
    """How many brackets stand open at once, at most, outside of strings."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _explain_not_json(data: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as not_utf8:
        return f"not UTF-8 text at byte {not_utf8.start + 1}"
    where = f"at character {error.pos + 1}" if error.pos else "at its start"
    return f"not JSON {where}: {error.msg}"


def _bad(index: int, number: int, problem: Problem) -> CheckedLine:
    return CheckedLine(index, number, None, None, 0, (problem,))


def _refuse_duplicate(line: CheckedLine, here: Place, first: Place) -> None:
    message = f"custom_id of {here} stands in {first} already"
    line.problems = (*line.problems, Problem("duplicate_custom_id", "custom_id", message))
    line.custom_id = line.body = None
    line.num_tokens = 0


def _admit(lines: Iterable[CheckedLine], admission: "Admission") -> None:
    """Put into each good line why it is a bad one, or the exact number of its tokens where that had to be known."""
    good = [line for line in lines if line.body is not None]
    measured = admission.measure([line.body or "" for line in good]) if good else []
    for line, outcome in zip(good, measured, strict=True):
        if isinstance(outcome, Problem):
            line.problems, line.body, line.num_tokens = (outcome,), None, 0
        elif outcome is not None:
            line.num_tokens = outcome


def _sound_id(custom_id: str | None) -> str | None:
    return None if custom_id_problem(custom_id) else custom_id


def validate(
    card: Card,
    paths: str | Sequence[str],
    limits: LineLimits,
    *,
    strict: bool = False,
    errors_path: str | None = None,
    admission: "Admission | None" = None,
    reading: Reading | None = None,
    selection: Selection | None = None,
) -> Report:
    """Check a whole file, or several, or what `selection` takes of them, and store nothing."""
    paths = [paths] if isinstance(paths, str) else paths
    errors_file = open_errors_file(errors_path, paths)
    try:
        checker = LineChecker(card, limits, strict=strict, errors_file=errors_file, admission=admission)
        with Inputs(paths, card, reading, is_strict=strict, selection=selection) as source:
            for _ in checker.check(source):
                pass
            checker.report.notes += source.notes
        return checker.report
    finally:
        if errors_file is not None:
            errors_file.close()
