"""A job's input: its files one after the other, each in its own dialect, as lines that the card has."""

import bisect
import contextlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Protocol, Self

import orjson

from db.errors import InputError
from db.states import InputFormat
from jobs.cards import Card
from jobs.dialects import openai
from jobs.dialects.detection import detect, is_openai
from jobs.dialects.documents import Document
from jobs.dialects.openai import OpenAILines
from jobs.dialects.reading import Reading
from jobs.dialects.rows import RowMapper, check_reading
from jobs.dialects.tables import CommaRows, ParquetRows
from jobs.reader import PARQUET_MAGIC, InputFile, NativeLine, Place, Progress, RawLine, combine_hashes
from jobs.selection import Counter, Picker, Selection, Taker, describe_selection

_UNITS = {
    InputFormat.CARD: "line",
    InputFormat.OPENAI: "line",
    InputFormat.CSV: "line",
    InputFormat.CLOUDFLARE: "element",
    InputFormat.ARRAY: "element",
    InputFormat.PARQUET: "row",
}


class _Translator(Protocol):
    def translate(self, block: Sequence[RawLine]) -> list[NativeLine]: ...
    def notes(self) -> Iterator[str]: ...


class Inputs:
    """All files of a job as one source of lines, read once; `-` is stdin. InputError for what cannot be read.

    Numbers go on from file to file; `place` says which file and line one is. What `selection` leaves out is not looked
    at any closer.
    """

    def __init__(
        self,
        paths: Sequence[str],
        card: Card,
        reading: Reading | None = None,
        *,
        is_strict: bool = False,
        selection: Selection | None = None,
    ) -> None:
        self._reading = reading or Reading()
        self._selection = selection or Selection()
        check_reading(self._reading)
        if not paths:
            raise InputError("there is no input; give a file, or - for stdin")
        if paths.count("-") > 1:
            raise InputError("stdin can be read once only; give - once")
        self._card = card
        self._is_strict = is_strict
        # all of them, so that one which is not there is found before the first is read; but there may be more than a
        # process may have open
        self._files: list[InputFile] = []
        for path in paths:
            try:
                self._files.append(InputFile(path))
                self._files[-1].put_by()
            except InputError:
                self.close()
                raise
        first = self._files[0].name
        self.name = first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
        self._formats: list[InputFormat] = []
        self._has_openai: list[bool] = []
        self._starts: list[int] = []
        self._notes: list[str] = []

    @property
    def input_format(self) -> InputFormat:
        """The files' own, where all have the same; after the last line."""
        kinds = {
            InputFormat.OPENAI if lines_are_openai else kind
            for kind, lines_are_openai in zip(self._formats, self._has_openai, strict=True)
        }
        return kinds.pop() if len(kinds) == 1 else InputFormat.CARD

    @property
    def sha256(self) -> str:
        """Of the files' own bytes, and of what requests are made by (`combine_hashes`); after the last line."""
        return combine_hashes([file.sha256 for file in self._files], self._reading.mapping)

    @property
    def notes(self) -> list[str]:
        """Warnings of the dialects, after the last line."""
        return self._notes

    def place(self, number: int) -> Place:
        at = bisect.bisect_left(self._starts, number) - 1
        file = self._files[at].name if len(self._files) > 1 else None
        return Place(file, _UNITS[self._formats[at]], number - self._starts[at])

    def explain_path(self, number: int, path: str) -> str:
        """A path in the card's line as one in the file's own."""
        is_openai = self._has_openai[bisect.bisect_left(self._starts, number) - 1]
        return openai.explain_path(path) if is_openai else path

    def blocks(self, max_line_bytes: int) -> Iterator[Sequence[NativeLine]]:
        picker = self._picker(max_line_bytes)
        start = 0
        for file in self._files:
            self._starts.append(start)
            last = start
            with closing(self._blocks_of(file, max_line_bytes, picker)) as blocks:
                for block in blocks:
                    if block:
                        last = start + block[-1][0]
                        yield [(start + number, data) for number, data in block] if start else block
                    if picker is not None and picker.is_done:
                        return  # `sha256` reads the rest, if it is asked for
            file.finish()
            start = last
        if picker is not None and picker.num_seen > 0 and picker.num_taken == 0:
            raise InputError(
                f"{self.name}: none of its {picker.num_seen:,} requests is taken"
                f" ({describe_selection(self._selection.text or '')}); take more, or another shard or seed"
            )

    def _picker(self, max_line_bytes: int) -> Picker | None:
        if self._selection.text is None:
            return None
        has_count = self._selection.num_sampled is not None
        return Picker(self._selection, self._count(max_line_bytes) if has_count else 0)

    def _count(self, max_line_bytes: int) -> int:
        """All requests. The files are at their starts again then."""
        counter = Counter()
        for file in self._files:
            file.keep()
            for _ in self._blocks_of(file, max_line_bytes, counter):
                pass
            file.put_by()
        self._formats, self._has_openai, self._notes = [], [], []
        return counter.num_seen

    def _blocks_of(
        self, file: InputFile, max_line_bytes: int, taker: Taker | None
    ) -> Generator[Sequence[NativeLine], None, None]:
        file.open()
        with file.explained("line"):
            kind = self._kind_of(file)
        self._formats.append(kind)
        self._has_openai.append(False)
        with file.explained(_UNITS[kind]) as progress:
            if kind in (InputFormat.CSV, InputFormat.PARQUET):
                yield from self._rows(file, kind, max_line_bytes, progress, taker)
            elif kind in (InputFormat.ARRAY, InputFormat.CLOUDFLARE):
                document = Document(file, max_line_bytes, is_cloudflare=kind is InputFormat.CLOUDFLARE)
                yield from self._translated(file, max_line_bytes, document.blocks(progress), taker)
                if document.other_fields:
                    self._notes.append(
                        f"{file.name}: without effect: {', '.join(document.other_fields[:20])}"
                    )
            else:
                yield from self._translated(file, max_line_bytes, file.blocks(max_line_bytes), taker)

    def _kind_of(self, file: InputFile) -> InputFormat:
        if self._reading.input_format is not None:
            return self._reading.input_format
        if file.is_parquet():
            return InputFormat.PARQUET
        head = file.head()
        if head.startswith(PARQUET_MAGIC):
            return InputFormat.PARQUET
        return detect(head, file.name, is_mapped=self._reading.is_mapped)

    def _rows(
        self,
        file: InputFile,
        kind: InputFormat,
        max_line_bytes: int,
        progress: Progress,
        taker: Taker | None,
    ) -> Iterator[Sequence[NativeLine]]:
        made: list[RowMapper] = []

        def make_mapper(columns: list[str]) -> RowMapper:
            made.append(self._mapper(file, max_line_bytes, columns))
            return made[0]

        rows = CommaRows(file, max_line_bytes) if kind is InputFormat.CSV else ParquetRows(file)
        try:
            yield from rows.blocks(progress, make_mapper, taker)
        finally:  # also where nobody reads on
            for mapper in made:
                self._notes += mapper.notes()

    def _translated(
        self, file: InputFile, max_line_bytes: int, blocks: Iterator[list[RawLine]], taker: Taker | None
    ) -> Iterator[Sequence[NativeLine]]:
        """Lines or elements of JSON; the first says whether they are OpenAI's."""
        translator: _Translator | None = None
        is_first = True
        try:
            for block in blocks:
                if is_first and block:
                    is_first = False
                    translator = self._translator(file, max_line_bytes, block)
                taken = block if taker is None else taker.take(block)
                yield taken if translator is None else translator.translate(taken)
        finally:  # also where nobody reads on
            if translator is not None:
                self._notes += translator.notes()

    def _translator(
        self, file: InputFile, max_line_bytes: int, first: Sequence[RawLine]
    ) -> _Translator | None:
        kind = self._formats[-1]
        has_choice = self._reading.input_format is None or kind in (InputFormat.ARRAY, InputFormat.CLOUDFLARE)
        if kind is InputFormat.OPENAI or (has_choice and _is_openai(first)):
            if self._reading.is_mapped:
                raise InputError(
                    f"{file.name}: OpenAI's lines are requests already; leave out the template or column"
                )
            self._has_openai[-1] = True
            return OpenAILines(self._card, is_model_given=self._reading.is_model_given)
        if self._reading.is_mapped:
            return self._mapper(file, max_line_bytes, None)
        return None

    def _mapper(self, file: InputFile, max_line_bytes: int, columns: Sequence[str] | None) -> RowMapper:
        return RowMapper(
            self._card,
            self._reading,
            file.name,
            columns,
            max_bytes=max_line_bytes,
            is_strict=self._is_strict,
        )

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_openai(block: Sequence[RawLine]) -> bool:
    """By the first that is JSON."""
    for _, data in block:
        with contextlib.suppress(orjson.JSONDecodeError):
            return is_openai(orjson.loads(data or b""))
    return False
