"""Requests made from rows: a table's columns, or a JSON object's fields, by a template or by a column's name."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from db.errors import InputError
from jobs.cards import Card
from jobs.dialects.cards import ALIAS_FIELDS, with_custom_id
from jobs.dialects.reading import Reading
from jobs.generation import SAMPLING_FIELDS
from jobs.reader import NativeLine, RawLine, Refused
from jobs.schema import OWN_FIELDS, REFERENCE_FIELDS, Problem, RequestSchema, format_path

if TYPE_CHECKING:
    from jobs.dialects.templates import Template

_TEXTS = ("prompt", "messages")
_MAX_NAMED_COLUMNS = 20


class RowMapper:
    """Makes a card's line of each row. A column that is named like a field of a request is that field; the others are
    for the template, and without effect where it does not name them.

    `columns` are a table's; without them they are found out row by row. InputError when no column is the prompt.
    """

    def __init__(
        self,
        card: Card,
        reading: Reading,
        name: str,
        columns: Sequence[str] | None,
        *,
        max_bytes: int,
        is_strict: bool,
    ) -> None:
        schema = RequestSchema(card.input_schema)
        named = schema.known_fields | SAMPLING_FIELDS | OWN_FIELDS | REFERENCE_FIELDS | ALIAS_FIELDS
        self.fields = named - set(_TEXTS)
        self._name = name
        self._template = _compile(reading)
        self._target, self._column = _source_of_text(reading)
        self.messages = self._column if self._target == "messages" else "messages"
        self.ids = OWN_FIELDS | ALIAS_FIELDS
        self._idle: dict[str, None] = {}
        self._is_strict = is_strict
        self._max_bytes = max_bytes
        if columns is not None:
            self._check_columns(columns)

    def needs(self, name: str) -> bool:
        """Whether a column has an effect."""
        return name in self.fields or name in self._used

    def line(self, row: dict[str, Any]) -> bytes | Refused | None:
        """Of a `row` without its nulls; None for one longer than allowed."""
        body = {name: value for name, value in row.items() if name in self.fields}
        custom_id = with_custom_id(body).get("custom_id")
        for name in row:
            if not self.needs(name) and len(self._idle) <= _MAX_NAMED_COLUMNS:
                self._idle[name] = None
        if self._template is not None:
            text = self._template.render(row)
            if isinstance(text, Problem):
                return Refused((text,), custom_id if isinstance(custom_id, str) else None)
            body["prompt"] = text
        elif self._column is not None:
            if self._column not in row:
                problem = Problem("invalid_request", format_path([self._column]), "it is missing or empty")
                return Refused((problem,), custom_id if isinstance(custom_id, str) else None)
            body[self._target] = row[self._column]
        else:
            body.update({name: row[name] for name in _TEXTS if name in row})
        body = with_custom_id(body)
        try:
            line = orjson.dumps(body)
            return line if len(line) <= self._max_bytes else None
        except (orjson.JSONEncodeError, TypeError):
            problem = Problem("invalid_request", "", "a value of it is nested too deeply, or no JSON has it")
            return Refused((problem,), custom_id if isinstance(custom_id, str) else None)

    def translate(self, block: Iterable[RawLine]) -> list[NativeLine]:
        """Of JSON objects: their fields are the columns."""
        return [(number, self._of_json(data)) for number, data in block]

    def _of_json(self, data: bytes | None) -> bytes | Refused | None:
        try:
            row = orjson.loads(data or b"")
        except orjson.JSONDecodeError:
            return data  # whoever checks lines explains it
        if not isinstance(row, dict):
            return data
        return self.line({name: value for name, value in row.items() if value is not None})

    def notes(self) -> Iterator[str]:
        """One warning for all columns without effect."""
        if self._idle:
            names = [format_path([name]) for name in list(self._idle)[:_MAX_NAMED_COLUMNS]]
            more = ", …" if len(self._idle) > _MAX_NAMED_COLUMNS else ""
            yield f"{self._name}: without effect: {', '.join(names)}{more}"

    @property
    def _used(self) -> frozenset[str]:
        if self._template is not None:
            return self._template.names
        return frozenset(_TEXTS if self._column is None else (self._column,))

    def _check_columns(self, columns: Sequence[str]) -> None:
        shown = ", ".join(format_path([name]) for name in columns[:_MAX_NAMED_COLUMNS])
        if self._column is not None and self._column not in columns:
            raise InputError(f"{self._name}: there is no column {self._column}; there are: {shown}")
        if self._template is not None and (missing := sorted(self._template.names - set(columns))):
            raise InputError(
                f"{self._name}: there is no column {missing[0]}, which the template names; there are: {shown}"
            )
        if self._template is None and self._column is None and set(_TEXTS).isdisjoint(columns):
            raise InputError(
                f"{self._name}: there is neither a column prompt nor messages. Say which it is with --prompt-column or"
                f" --messages-column, or make prompts with --template; its columns: {shown}"
            )
        idle = [name for name in columns if not self.needs(name)]
        self._idle = dict.fromkeys(idle)
        if self._is_strict and idle:
            raise InputError(f"{self._name}: --strict refuses columns without effect: {', '.join(idle[:20])}")


def _compile(reading: Reading) -> "Template | None":
    if reading.template is None:
        return None
    from jobs.dialects.templates import Template

    return Template(reading.template)


def _source_of_text(reading: Reading) -> tuple[str, str | None]:
    if reading.messages_column is not None:
        return "messages", reading.messages_column
    return "prompt", reading.prompt_column


def check_reading(reading: Reading) -> None:
    """SettingsError for a template that is none: better before a file is read."""
    _compile(reading)
