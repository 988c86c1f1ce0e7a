"""Results as CSV: RFC 4180, in UTF-8, with a header."""

import csv
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from db.outcomes import Outcome
from jobs.forms.columns import Column, Kind, cell
from jobs.forms.fields import view


class _Line:
    """What csv writes to: it hands each line back."""

    def write(self, text: str) -> bytes:
        return text.encode()


def _row_writer() -> Callable[[Iterable[Any]], bytes]:
    # csv gives what `write` gives; its default line end makes it quote both characters that a reader may take for one
    to: Any = _Line()
    write_row: Callable[[Iterable[Any]], Any] = csv.writer(to).writerow
    return write_row


def header(columns: Sequence[Column]) -> bytes:
    return _row_writer()(column.name for column in columns)


def csv_formatter(columns: Sequence[Column]) -> Callable[[Outcome], bytes]:
    write_row = _row_writer()
    # lists are JSON here
    getters = [(Kind.TEXT if one.kind is Kind.MESSAGES else one.kind, one.get) for one in columns]

    def format_row(outcome: Outcome) -> bytes:
        line = view(outcome)
        return write_row([cell(kind, get(line)) for kind, get in getters])

    return format_row
