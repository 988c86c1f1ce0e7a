"""Checking an input file line by line against a card, in bounded memory."""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import orjson

from db.errors import OutputError
from jobs.cards import Card
from jobs.generation import (
    DEFAULT_MAX_TOKENS,
    SAMPLING_FIELDS,
    check_max_tokens,
    check_sampling,
)
from jobs.reader import InputFile, RawLine
from jobs.schema import OWN_FIELDS, Problem, RequestSchema, format_path

# A custom_id is indexed, and an index entry of Postgres holds at most 2,704 bytes.
MAX_CUSTOM_ID_CHARS = 512
_NUM_SHOWN = 20
# Different names of unknown fields that are counted one by one: ten million lines may have as many.
_MAX_WARNED_FIELDS = 100
_OTHER_FIELDS = "(others)"
_BYTES_PER_TOKEN = 4
# Eight bits each: of ten million ids one in thirty finds the bit of another set.
_LAST_PLACE = 16 * 1024 * 1024 - 1
# Custom ids in memory: what each takes beside its characters, and all of them.
_BYTES_PER_ID = 160
_MAX_LATEST_BYTES = 16 * 1024 * 1024
_IDS_A_STATEMENT = 500


@dataclass(frozen=True)
class LineError:
    """A bad line as `validate --json` and `--errors FILE` show it."""

    line: int
    code: str
    path: str
    message: str


@dataclass(frozen=True)
class FieldWarning:
    """A field that the schema does not know, and that will have no effect."""

    field: str
    count: int
    first_line: int
    nearest: str | None

    @property
    def message(self) -> str:
        hint = f"; did you mean {self.nearest}?" if self.nearest else ""
        lines = f"{self.count:,} lines" if self.count > 1 else "1 line"
        return (
            f"unknown field {self.field} in {lines}, first in line {self.first_line}: it has no effect{hint}"
        )


@dataclass(slots=True)  # there are millions: a frozen one takes four times as long to make
class CheckedLine:
    """One line. `body` is its JSON text, None when it is bad; `num_tokens` estimates prompt and completion."""

    index: int
    number: int
    custom_id: str | None
    body: str | None
    num_tokens: int
    problems: tuple[Problem, ...]


@dataclass
class Report:
    """What a check found; `errors` holds the first 20, the errors file all of them."""

    num_lines: int = 0
    num_invalid: int = 0
    num_errors: int = 0
    errors: list[LineError] = field(default_factory=list)
    warnings: list[FieldWarning] = field(default_factory=list)

    @property
    def num_valid(self) -> int:
        return self.num_lines - self.num_invalid

    @property
    def is_valid(self) -> bool:
        return self.num_invalid == 0 and self.num_lines > 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "lines": self.num_lines,
            "valid": self.num_valid,
            "invalid": self.num_invalid,
            "errors": [vars(error) for error in self.errors],
            "warnings": [{**vars(warning), "message": warning.message} for warning in self.warnings],
        }


class _CustomIds:
    """Which custom_id stood in which line, in bounded memory however many there are.

    The latest are in a dict, all others in a temporary SQLite file. In front of both stands a table of bits: an id
    whose bit is not set is new for sure, so that hardly any look-up is for nothing.
    """

    def __init__(self) -> None:
        self._bits = bytearray(_LAST_PLACE + 1)
        self._latest: dict[str, int] = {}
        self._free_bytes = _MAX_LATEST_BYTES
        self._file: sqlite3.Connection | None = None

    def find_duplicates(self, lines: Iterable[tuple[str | None, int]]) -> dict[int, int]:
        """For each line that has the custom_id of an earlier one: the line where it stood first."""
        duplicates = {}
        bits, latest = self._bits, self._latest
        for custom_id, number in lines:
            if custom_id is None:
                continue
            hashed = hash(custom_id)
            place, bit = hashed >> 3 & _LAST_PLACE, 1 << (hashed & 7)
            if not bits[place] & bit:
                bits[place] |= bit
            elif first := self._find(custom_id):
                duplicates[number] = first
                continue
            latest[custom_id] = number
            self._free_bytes -= len(custom_id) + _BYTES_PER_ID
            if self._free_bytes < 0:
                self._put_away()
        return duplicates

    def _find(self, custom_id: str) -> int | None:
        first = self._latest.get(custom_id)
        if first is None and self._file is not None:
            row = self._file.execute("SELECT line FROM seen WHERE custom_id = ?", (custom_id,)).fetchone()
            first = row and row[0]
        return first

    def _put_away(self) -> None:
        if self._file is None:
            self._file = sqlite3.connect("")
            self._file.execute("PRAGMA journal_mode = OFF")
            self._file.execute("PRAGMA cache_size = -16384")
            self._file.execute("CREATE TABLE seen (custom_id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")
            self._file.execute("BEGIN")
        # sorted, so that ids without any order come to each page once and not again and again; and many in one
        # statement, which takes a third of the time
        ids = sorted(self._latest)
        for first in range(0, len(ids), _IDS_A_STATEMENT):
            part = ids[first : first + _IDS_A_STATEMENT]
            places = ", ".join(["(?, ?)"] * len(part))
            values = [value for custom_id in part for value in (custom_id, self._latest[custom_id])]
            self._file.execute(f"INSERT INTO seen VALUES {places}", values)  # noqa: S608  places only
        self._latest.clear()
        self._free_bytes = _MAX_LATEST_BYTES

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Writable(Protocol):
    def write(self, text: str, /) -> object: ...


class LineChecker:
    """Checks the lines of one file, and keeps the report. `strict` refuses fields that the schema does not know."""

    def __init__(self, card: Card, *, strict: bool = False, errors_file: _Writable | None = None) -> None:
        self.report = Report()
        self._schema = RequestSchema(card.input_schema)
        self._max_total_tokens = card.limits.max_total_tokens
        self._known = self._schema.known_fields | OWN_FIELDS | SAMPLING_FIELDS
        self._strict = strict
        self._errors_file = errors_file
        self._unknown: dict[str, list[int]] = {}

    def check(self, source: InputFile, max_line_bytes: int) -> Iterator[CheckedLine]:
        """Every line that is not blank, in order, good or bad; the report is whole after the last one."""
        custom_ids = _CustomIds()
        try:
            for block in source.blocks(max_line_bytes):
                first = self.report.num_lines
                lines = self._check_block(first, block, max_line_bytes)
                duplicates = custom_ids.find_duplicates((line.custom_id, line.number) for line in lines)
                self.report.num_lines += len(lines)
                for line in lines:
                    if line.number in duplicates:
                        _refuse_duplicate(line, duplicates[line.number])
                    if line.problems:
                        self._report(line)
                    yield line
        finally:
            custom_ids.close()
            self.report.warnings = [
                FieldWarning(format_path([name]), count, first, self._nearest(name))
                for name, (count, first) in self._unknown.items()
            ]

    def _check_block(
        self, first_index: int, block: Sequence[RawLine], max_line_bytes: int
    ) -> list[CheckedLine]:
        """All but duplicates. Most blocks are good as a whole, and found so in half the time of their lines."""
        texts = [data or b"" for _, data in block]  # one that was too long is no JSON either
        try:
            bodies = [orjson.loads(text) for text in texts]
        except orjson.JSONDecodeError:
            return [
                self._check_line(index, number, data, max_line_bytes)
                for index, (number, data) in enumerate(block, first_index)
            ]
        numbers = [number for number, _ in block]
        lines = enumerate(zip(numbers, texts, bodies, strict=True), first_index)
        if not self._are_good(bodies):
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
            all(map(self._schema.is_valid, bodies))
            and set(map(type, bodies)) == {dict}
            and all(map(self._known.issuperset, bodies))
            and not any(map(check_max_tokens, bodies))
            and not any(map(check_sampling, bodies))
            and not any(_custom_id_problem(body.get("custom_id")) for body in bodies)
        )

    def _check_line(self, index: int, number: int, data: bytes | None, max_line_bytes: int) -> CheckedLine:
        if data is None:
            message = f"the line is longer than max_line_bytes ({max_line_bytes:,})"
            return _bad(index, number, Problem("invalid_request", "", message))
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            return _bad(index, number, Problem("invalid_json", "", _explain_not_json(data, error)))
        return self._check_body(index, number, data, body)

    def _check_body(self, index: int, number: int, data: bytes, body: Any) -> CheckedLine:
        problems = self._problems(body, number)
        custom_id = body.get("custom_id") if isinstance(body, dict) else None
        if reason := _custom_id_problem(custom_id):
            problems.append(Problem("invalid_request", "custom_id", reason))
            custom_id = None
        if problems:
            return CheckedLine(index, number, custom_id, None, 0, tuple(problems))
        return CheckedLine(index, number, custom_id, data.decode(), self._estimate_tokens(data, body), ())

    def _estimate_tokens(self, data: bytes, body: dict[str, Any]) -> int:
        max_tokens = body.get("max_tokens")
        if not isinstance(max_tokens, int | float):
            max_tokens = DEFAULT_MAX_TOKENS
        return min(len(data) // _BYTES_PER_TOKEN + int(max_tokens), self._max_total_tokens)

    def _problems(self, body: Any, number: int) -> list[Problem]:
        if not self._schema.is_valid(body):
            return self._schema.problems(body)
        if not isinstance(body, dict):
            return [Problem("invalid_request", "", "a request is a JSON object")]
        problems = check_max_tokens(body) + check_sampling(body)
        if not self._known.issuperset(body):
            # in the line's own order, which a set would not keep
            for name in (name for name in body if name not in self._known):
                self._count_unknown(name, number)
                if self._strict:
                    nearest = self._nearest(name)
                    hint = f"; did you mean {nearest}?" if nearest else ""
                    message = f"the card's schema has no such field{hint}"
                    problems.append(Problem("invalid_request", format_path([name]), message))
        return problems

    def _count_unknown(self, name: str, number: int) -> None:
        if name not in self._unknown and len(self._unknown) >= _MAX_WARNED_FIELDS:
            name = _OTHER_FIELDS
        self._unknown.setdefault(name, [0, number])[0] += 1

    def _nearest(self, name: str) -> str | None:
        return self._schema.nearest_field(name, SAMPLING_FIELDS)

    def _report(self, line: CheckedLine) -> None:
        report = self.report
        report.num_invalid += 1
        for problem in line.problems:
            error = LineError(line.number, problem.code, problem.path, problem.message)
            report.num_errors += 1
            if len(report.errors) < _NUM_SHOWN:
                report.errors.append(error)
            if self._errors_file is not None:
                self._errors_file.write(json.dumps(vars(error), ensure_ascii=False) + "\n")


def _explain_not_json(data: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as not_utf8:
        return f"not UTF-8 text at byte {not_utf8.start + 1}"
    where = f"at character {error.pos + 1}" if error.pos else "at its start"
    return f"not JSON {where}: {error.msg}"


def _bad(index: int, number: int, problem: Problem) -> CheckedLine:
    return CheckedLine(index, number, None, None, 0, (problem,))


def _refuse_duplicate(line: CheckedLine, first_line: int) -> None:
    message = f"custom_id of line {line.number} stands in line {first_line} already"
    line.problems = (*line.problems, Problem("duplicate_custom_id", "custom_id", message))
    line.custom_id = line.body = None
    line.num_tokens = 0


def _custom_id_problem(custom_id: object) -> str | None:
    if custom_id is None:
        return None
    if not isinstance(custom_id, str):
        return "custom_id must be a string"
    if len(custom_id) > MAX_CUSTOM_ID_CHARS:
        return f"custom_id is longer than {MAX_CUSTOM_ID_CHARS} characters"
    if "\0" in custom_id:
        return "custom_id holds a NUL character, which no database stores"
    return None


class ErrorsFile:
    """A file of errors; OutputError names it when it cannot be written on."""

    def __init__(self, path: str, file: IO[str]) -> None:
        self._path = path
        self._file = file

    def write(self, text: str, /) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            raise self._explain(error) from error

    def close(self) -> None:
        """A second call does nothing."""
        try:
            self._file.close()
        except OSError as error:
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self._path}: {error.strerror}")


def open_errors_file(path: str | None, input_path: str) -> ErrorsFile | None:
    """A new private file for all errors of a check, as JSONL; None for no path."""
    if path is None:
        return None
    try:
        if Path(path).exists() and Path(input_path).exists() and Path(path).samefile(input_path):
            raise OutputError(f"{path} is the input; give the errors another file")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        return ErrorsFile(path, os.fdopen(descriptor, "w", encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def validate(
    card: Card,
    path: str,
    max_line_bytes: int,
    *,
    strict: bool = False,
    errors_path: str | None = None,
) -> Report:
    """Check a whole file and store nothing."""
    errors_file = open_errors_file(errors_path, path)
    try:
        checker = LineChecker(card, strict=strict, errors_file=errors_file)
        with InputFile(path) as source:
            for _ in checker.check(source, max_line_bytes):
                pass
        return checker.report
    finally:
        if errors_file is not None:
            errors_file.close()
