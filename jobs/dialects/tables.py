"""CSV and Parquet, row by row in bounded memory."""

import csv
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import IO, Any

import orjson

from db.errors import InputError, SettingsError
from jobs.dialects.detection import delimiter_of
from jobs.dialects.rows import RowMapper
from jobs.reader import InputFile, NativeLine, Progress, Refused
from jobs.schema import Problem, format_path
from jobs.selection import Taker

_ROWS_A_BLOCK = 256
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_BOOLEANS = {"true": True, "false": False}
MakeMapper = Callable[[list[str]], RowMapper]
# its number, and its cells; None for one with a line longer than allowed
_Row = tuple[int, list[str] | Refused | None]


class CommaRows:
    """The rows of a CSV file; the delimiter is what the header has most of: commas, semicolons or tabs."""

    def __init__(self, source: InputFile, max_line_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_line_bytes
        self._is_too_long = False
        self._num_lines = 0
        # of the whole process, which reads such files here alone
        csv.field_size_limit(max_line_bytes)

    def blocks(
        self, progress: Progress, make_mapper: MakeMapper, taker: Taker | None = None
    ) -> Iterator[list[NativeLine]]:
        """Numbered by the line in which a row begins: the header's is 1."""
        texts = self._texts()
        header = next((text for text in texts if text.strip()), "")
        delimiter = delimiter_of(header)
        try:
            names = next(csv.reader(chain([header], texts), delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            raise InputError(f"{self._source.name}: its header is no row of CSV: {error}") from error
        columns = [name.strip() for name in names]
        if _NOT_UTF8.search(header):
            raise InputError(f"{self._source.name}: its header is not UTF-8 text; save it as UTF-8")
        if doubled := next((name for name in columns if columns.count(name) > 1), None):
            raise InputError(f"{self._source.name}: it has two columns {format_path([doubled])}; rename one")
        mapper = make_mapper(columns)
        for block in self._rows(csv.reader(texts, delimiter=delimiter, strict=True), progress):
            taken = block if taker is None else taker.take(block)
            yield [(number, self._line(row, columns, mapper)) for number, row in taken]

    def _rows(self, rows: Iterator[list[str]], progress: Progress) -> Iterator[list[_Row]]:
        block: list[_Row] = []
        while True:
            number = self._num_lines + 1
            try:
                row = next(rows, None)
            except csv.Error as error:
                block.append((number, _refused(f"it is no row of CSV: {error}; is a quote left open?")))
                continue
            if row is None:
                break
            progress.number = number
            if row or self._is_too_long:
                block.append((number, None if self._is_too_long else row))
                self._is_too_long = False
            if len(block) >= _ROWS_A_BLOCK:
                yield block
                block = []
        yield block

    def _texts(self) -> Iterator[str]:
        """Lines with their ends, as the csv module wants them; what is not UTF-8 stays visible."""
        for lines in self._source.whole_lines(self._max_bytes):
            for line in lines:
                self._is_too_long |= line is None
                self._num_lines += 1
                yield (line or b"").decode("utf-8", "surrogateescape") + "\n"

    def _line(
        self, row: list[str] | Refused | None, columns: list[str], mapper: RowMapper
    ) -> bytes | Refused | None:
        if not isinstance(row, list):
            return row
        if len(row) != len(columns):
            return _refused(
                f"it has {len(row)} columns, and the header {len(columns)}; text with a delimiter needs quotes"
            )
        if any(map(_NOT_UTF8.search, row)):
            return _refused("not UTF-8 text; save the file as UTF-8")
        return mapper.line(
            {
                name: _typed(name, text, mapper) if name in mapper.fields or name == mapper.messages else text
                for name, text in zip(columns, row, strict=True)
                if text
            }
        )


def _typed(name: str, text: str, mapper: RowMapper) -> object:
    """A cell as the field of that name has it: JSON where it is JSON, else text."""
    if name in mapper.ids:
        return text
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if name == "stop" and text[:1] not in ("[", '"'):
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _refused(message: str) -> Refused:
    return Refused((Problem("invalid_request", "", message),))


class ParquetRows:
    """The rows of a Parquet file, numbered from 1. What cannot be read in any order is copied first, onto the disk."""

    def __init__(self, source: InputFile) -> None:
        self._source = source

    def blocks(
        self, progress: Progress, make_mapper: MakeMapper, taker: Taker | None = None
    ) -> Iterator[list[NativeLine]]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise SettingsError(
                "reading Parquet needs the package pyarrow; install it with: pip install 'promptmill[export]'"
            ) from error
        with ExitStack() as stack:
            try:
                file = pyarrow.parquet.ParquetFile(self._file(stack))
                mapper = make_mapper(file.schema_arrow.names)
                # no other column is read: there may be images
                needed = [name for name in file.schema_arrow.names if mapper.needs(name)]
                for batch in file.iter_batches(_ROWS_A_BLOCK, columns=needed):
                    first, progress.number = progress.number + 1, progress.number + batch.num_rows
                    numbers: Sequence[int] = range(first, first + batch.num_rows)
                    if taker is not None:
                        numbers = taker.take(numbers)
                        batch = batch.take(pyarrow.array([number - first for number in numbers], "int64"))
                    rows: list[Mapping[str, Any]] = batch.to_pylist()
                    yield [
                        (
                            number,
                            mapper.line({name: value for name, value in row.items() if value is not None}),
                        )
                        for number, row in zip(numbers, rows, strict=True)
                    ]
            except pyarrow.ArrowException as error:
                raise InputError(
                    f"{self._source.name}: the Parquet data is damaged after row {progress.number:,}"
                    f" ({type(error).__name__}); make the file again"
                ) from error

    def _file(self, stack: ExitStack) -> IO[bytes]:
        path = self._source.regular_file()
        if path is not None and self._source.is_parquet():
            return stack.enter_context(path.open("rb"))
        copy: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  the stack closes it
        for piece in self._source.pieces():
            copy.write(piece)
        copy.seek(0)
        return copy
