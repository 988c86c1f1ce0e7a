"""One large JSON document taken apart into its requests, in bounded memory: an array, or Cloudflare's batch body.

Only brackets and strings are looked at here. What an element holds is for orjson, as with a line.
"""

import re
from collections.abc import Iterator
from typing import NoReturn

from db.errors import InputError
from jobs.reader import InputFile, Progress, RawLine

_ELEMENTS_A_BLOCK = 256
_BYTES_A_BLOCK = 64 * 1024
_SPACE = re.compile(rb"[ \t\r\n]*+")
# Strings whole; an object that holds none is passed over as one.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rb'[^"\[\]{}]++|' + _STRING
_TO_BRACKET = re.compile(rb"(?s:(?:" + _FLAT + rb"|\{(?:" + _FLAT + rb")*+\})*+([\[\]{}]))")
_WHOLE_STRING = re.compile(rb"(?s:" + _STRING + rb")")
_SCALAR = re.compile(rb'[^\s,\[\]{}":]++(?=[\s,\]}])')
_SIGN = re.compile(rb'["\[\]{}]')
_IN_STRING = re.compile(rb'["\\]')


class _Cut(Exception):  # noqa: N818  no error: a signal that more is to be read
    """The buffer ends before the value does."""


class Document:
    """The elements of a file's one array: that which it is, or its `requests`. InputError for what is neither."""

    def __init__(self, source: InputFile, max_element_bytes: int, *, is_cloudflare: bool) -> None:
        self._name = source.name
        self._pieces = source.pieces()
        self._max_bytes = max_element_bytes
        self._is_cloudflare = is_cloudflare
        self._buffer = b""
        self._at = 0
        self._progress = Progress()
        self.other_fields: list[str] = []

    def blocks(self, progress: Progress) -> Iterator[list[RawLine]]:
        """Every element, numbered from 1; None for one that is longer than allowed."""
        self._progress = progress
        if not self._is_cloudflare:
            self._expect(b"[")
            yield from self._elements()
        else:
            yield from self._requests()
        if self._peek():
            self._refuse("more follows after the document's end; give each document a file of its own")

    def _requests(self) -> Iterator[list[RawLine]]:
        is_found = False
        self._expect(b"{")
        while self._peek() != b"}":
            name = self._value()
            if name is None or not name.startswith(b'"'):
                self._refuse("it is not JSON: the name of a field is expected")
            self._expect(b":")
            if name == b'"requests"' and not is_found:
                is_found = True
                self._expect(b"[")
                yield from self._elements()
            else:
                self._value()
                self.other_fields.append(name[1:-1].decode("utf-8", "replace"))
            if self._peek() != b"}":
                self._expect(b",")
        self._expect(b"}")
        if not is_found:
            self._refuse('it has no "requests"; a batch body is {"requests": [...]}')

    def _elements(self) -> Iterator[list[RawLine]]:
        block: list[RawLine] = []
        num_bytes = 0
        is_first = True
        while (sign := self._peek()) != b"]":
            if not is_first:
                self._expect(b",")
            elif sign == b"":
                self._end()
            is_first = False
            element = self._value()
            number = self._progress.number + len(block) + 1
            block.append((number, element))
            num_bytes += len(element or b"")
            if len(block) >= _ELEMENTS_A_BLOCK or num_bytes >= _BYTES_A_BLOCK:
                self._progress.number = number
                yield block
                block, num_bytes = [], 0
        self._at += 1
        self._progress.number += len(block)
        yield block

    def _value(self) -> bytes | None:
        """The next value's bytes; None for one that is too long, and is passed over."""
        self._peek()
        while True:
            try:
                end = self._end_of_value()
            except _Cut:
                pending = len(self._buffer) - self._at
                if pending > self._max_bytes:
                    self._skip()
                    return None
                # twice as much before it is looked at again: else a long one would be looked at all too often
                self._read(max(pending, 1))
                continue
            start, self._at = self._at, end
            return self._buffer[start:end] if end - start <= self._max_bytes else None

    def _end_of_value(self) -> int:
        sign = self._buffer[self._at : self._at + 1]
        if sign in (b"{", b"["):
            depth, at = 1, self._at + 1
            while depth:
                found = _TO_BRACKET.match(self._buffer, at)
                if found is None:
                    raise _Cut
                at = found.end()
                depth += 1 if found[1] in b"[{" else -1
            return at
        found = (_WHOLE_STRING if sign == b'"' else _SCALAR).match(self._buffer, self._at)
        if found is None:
            if sign not in (b'"', b"") and not _could_be_scalar(self._buffer[self._at :]):
                self._refuse("it is not JSON: a value is expected")
            raise _Cut
        return found.end()

    def _skip(self) -> None:
        """Pass over a value of any length, one buffer at a time."""
        depth, is_string = 0, False
        while True:
            found = (_IN_STRING if is_string else _SIGN).search(self._buffer, self._at)
            if found is None:
                self._at = len(self._buffer)
                self._read(1)
                continue
            self._at = found.end()
            if found[0] == b"\\":
                if self._at == len(self._buffer):
                    self._read(1)
                self._at += 1
            elif found[0] == b'"':
                is_string = not is_string
            else:
                depth += 1 if found[0] in b"[{" else -1
            if depth == 0 and not is_string:
                return

    def _peek(self) -> bytes:
        """The next sign that is no space, not taken; empty at the end."""
        while True:
            found = _SPACE.match(self._buffer, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at : self._at + 1]
            if not self._read(1, is_end_allowed=True):
                return b""

    def _expect(self, sign: bytes) -> None:
        found = self._peek()
        if not found:
            self._end()
        if found != sign:
            self._refuse(f"it is not JSON: {sign.decode()} is expected")
        self._at += 1

    def _read(self, num_bytes: int, *, is_end_allowed: bool = False) -> bool:
        """Have so many bytes more in the buffer, or fewer where the file ends."""
        pieces = [self._buffer[self._at :]]
        while num_bytes > 0 and (piece := next(self._pieces, b"")):
            pieces.append(piece)
            num_bytes -= len(piece)
        self._buffer, self._at = b"".join(pieces), 0
        if len(pieces) == 1 and not is_end_allowed:
            self._end()
        return len(pieces) > 1

    def _end(self) -> NoReturn:
        raise InputError(
            f"{self._name}: the document ends within or after element {self._num_read():,}, before it is whole;"
            " is it cut off?"
        )

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"{self._name}: after element {self._num_read():,}: {what}")

    def _num_read(self) -> int:
        return self._progress.number


def _could_be_scalar(rest: bytes) -> bool:
    return re.fullmatch(rb'[^\s,\[\]{}":]++', rest) is not None
