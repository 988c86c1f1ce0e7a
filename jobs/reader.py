"""Reading an input file line by line in bounded memory: plain, gzip or zstd, from a path or from stdin."""

import gzip
import hashlib
import io
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from db.errors import InputError, why
from jobs.schema import Problem
from jobs.settings import Settings

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# what a frame without data begins with, and a file that pzstd made
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_BUFFER_BYTES = 64 * 1024
PARQUET_MAGIC = b"PAR1"
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError)


@dataclass(frozen=True)
class LineLimits:
    """What a line may be at most: bytes, and arrays and objects inside each other (JSON's parser takes up to 1,024)."""

    max_bytes: int
    max_depth: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.max_line_bytes, settings.max_line_depth)


@dataclass(frozen=True)
class Refused:
    """A request that its dialect cannot make a card's line of, and why; what is known of its custom_id stays."""

    problems: tuple[Problem, ...]
    custom_id: str | None = None


# One line that is not blank, without its end: its number, which counts every line of the file from 1, and its bytes.
# None for a line longer than allowed, whose bytes were skipped. A plain tuple, since there are millions.
RawLine = tuple[int, bytes | None]
# The same as the card has it, whatever dialect it came in; numbers go on from file to file.
NativeLine = tuple[int, bytes | Refused | None]


@dataclass(frozen=True)
class Place:
    """Where a request stands. `file` is None where there is only one."""

    file: str | None
    unit: str
    number: int

    def __str__(self) -> str:
        where = f"{self.unit} {self.number}"
        return f"{self.file}, {where}" if self.file else where


class _Hashed(io.RawIOBase):
    """The file's own bytes on their way through, hashed."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        self.hash.update(data)
        buffer[: len(data)] = data
        return len(data)


class _Inflated(io.RawIOBase):
    """What a decompressor yields, piece by piece: one that fills a whole buffer would drop, at damaged data, the
    good lines before it."""

    def __init__(self, file: gzip.GzipFile | zstd.ZstdFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Progress:
    """How far a reader came."""

    number = 0


class InputFile:
    """A file of lines, read once from its start to its end. `-` is stdin.

    InputError names the file, and the line where it stops being readable.
    """

    def __init__(self, path: str) -> None:
        self.name = "stdin" if path == "-" else path
        self._path = None if path == "-" else Path(path)
        self._owned: IO[bytes] | None = None
        self._kept: IO[bytes] | None = None
        self._sha256: str | None = None
        self._is_open = False
        self.open()

    def open(self) -> None:
        """At its start; nothing where it is open."""
        if self._is_open:
            return
        if self._kept is not None:
            raw = self._kept
            raw.seek(0)
        elif self._path is not None:
            raw = self._owned = self._open(self._path)
        elif sys.stdin is None:  # as Python has it for a process that was started without one
            raise InputError("there is no stdin to read from; give the name of a file")
        else:
            raw = sys.stdin.buffer
        self._hashed = _Hashed(raw)
        self._buffered = io.BufferedReader(self._hashed, _BUFFER_BYTES)
        self._stream: io.BufferedReader[Any] | None = None
        self._pushed: list[bytes] = []
        self._damage: Exception | None = None
        self._is_open = True

    def put_by(self) -> None:
        """Close it until it is opened again, at its start. What can be read only once stays as it is."""
        if self._kept is not None:
            self._is_open = False
        elif self.regular_file() is not None:
            self.close()

    def keep(self) -> None:
        """Have what can be read only once in a temporary file, to open it again; before its first line is read."""
        if self._kept is None and self.regular_file() is None:
            with self.explained("line"):
                self._kept = tempfile.TemporaryFile()  # noqa: SIM115  close does it
                shutil.copyfileobj(self._buffered, self._kept)
            self._is_open = False

    def _open(self, path: Path) -> IO[bytes]:
        try:
            if path.is_dir():
                raise InputError(f"{path} is a folder; give a file of lines")
            return path.open("rb")
        except OSError as error:
            raise InputError(f"cannot read {path}: {why(error)}") from error

    def blocks(self, max_line_bytes: int) -> Iterator[list[RawLine]]:
        """Every line that is not blank, as many at once as were read at once: some hundreds, unless they are long."""
        with self.explained("line") as progress:
            for lines in self.whole_lines(max_line_bytes):
                first, progress.number = progress.number + 1, progress.number + len(lines)
                yield [
                    (at, text)
                    for at, data in enumerate(lines, first)
                    if (text := data and data.strip(_BLANK)) or data is None
                ]

    def place(self, number: int) -> Place:
        return Place(None, "line", number)

    def explain_path(self, number: int, path: str) -> str:  # noqa: ARG002  other sources look at the number
        return path

    @contextmanager
    def explained(self, unit: str) -> "Iterator[Progress]":
        """What goes wrong in reading comes out as InputError, which names how far it came."""
        progress = Progress()
        try:
            yield progress
        except _DAMAGED as error:
            raise InputError(
                f"{self.name}: the compressed data is damaged or cut off after {unit} {progress.number};"
                " make the file again"
            ) from error
        except OSError as error:
            raise InputError(
                f"{self.name}: cannot read on after {unit} {progress.number}: {why(error)}"
            ) from error

    def head(self) -> bytes:
        """What it begins with, which is still to be read: to where a second line begins, or 64 KiB, or all of it."""
        head = b""
        try:
            while b"\n" not in head.strip(_BLANK) and len(head) < _BUFFER_BYTES:
                piece = self._read_piece()
                if not piece:
                    break
                self._pushed.append(piece)
                head += piece
        except (*_DAMAGED, OSError) as error:
            self._damage = error  # what is good before it is still to be read
        return head

    def is_parquet(self) -> bool:
        return self._buffered.peek(4)[:4] == PARQUET_MAGIC

    def regular_file(self) -> Path | None:
        """The file itself where it can be read in any order."""
        return self._path if self._path is not None and self._path.is_file() else None

    def whole_lines(self, max_line_bytes: int) -> Iterator[list[bytes | None]]:
        """All lines without their ends, those at once that end in one block; None for one that is too long."""
        pieces: list[bytes] = []  # of the line whose end is still to come
        num_bytes = 0
        for block in self.pieces():
            first, *lines = block.split(b"\n")
            num_bytes += len(first)
            pieces.append(first)
            if num_bytes > max_line_bytes:
                pieces.clear()  # and count on
            if not lines:
                continue
            whole = [b"".join(pieces) if num_bytes <= max_line_bytes else None, *lines[:-1]]
            if len(block) > max_line_bytes:
                whole = [line if line is None or len(line) <= max_line_bytes else None for line in whole]
            pieces, num_bytes = lines[-1:], len(lines[-1])
            yield whole
        if num_bytes:
            yield [b"".join(pieces) if num_bytes <= max_line_bytes else None]

    def pieces(self) -> Iterator[bytes]:
        """The decompressed bytes, without a byte order mark."""
        pushed, self._pushed = self._pushed, []
        yield from pushed
        if self._damage is not None:
            raise self._damage
        while piece := self._read_piece():
            yield piece

    def _read_piece(self) -> bytes:
        if self._stream is None:
            self._stream = self._decompressed()
            if start := self._stream.read(len(_BOM)).removeprefix(_BOM):
                return start
        return self._stream.read1(_BUFFER_BYTES)

    def _decompressed(self) -> "io.BufferedReader[Any]":
        magic = self._buffered.peek(4)[:4]
        if magic.startswith(_GZIP_MAGIC):
            return io.BufferedReader(_Inflated(gzip.GzipFile(fileobj=self._buffered)), _BUFFER_BYTES)
        if magic == _ZSTD_MAGIC or _ZSTD_SKIPPABLE.fullmatch(magic):
            return io.BufferedReader(_Inflated(zstd.ZstdFile(self._buffered)), _BUFFER_BYTES)
        return self._buffered

    @property
    def sha256(self) -> str:
        """Of the file's own bytes, compressed or not; call it after the last line."""
        return self._sha256 or self.finish()

    def finish(self) -> str:
        """Read it to its end and close it; what it returns stays its `sha256`."""
        self.open()
        while self._buffered.read(_BUFFER_BYTES):
            pass
        self._sha256 = self._hashed.hash.hexdigest()
        self.close()
        return self._sha256

    def close(self) -> None:
        for file in (self._owned, self._kept):
            if file is not None:
                file.close()
        self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def hash_file(path: str) -> str | None:
    """SHA-256 of a regular file; None for stdin, a pipe or what cannot be read."""
    try:
        if path == "-" or not Path(path).is_file():
            return None
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def hash_inputs(paths: Sequence[str], more: Sequence[str] = ()) -> str | None:
    """`combine_hashes` of regular files; None where one is none."""
    hashes = [hash_file(path) for path in paths]
    return combine_hashes([one for one in hashes if one], more) if all(hashes) else None


def combine_hashes(hashes: Sequence[str], more: Sequence[str] = ()) -> str:
    """The one hash of a job's input: its file's own. That of several is the SHA-256 of theirs in their order, each
    with a line's end; `more` is what else the requests were made from, in further lines."""
    lines = [*hashes, *more]
    if len(lines) == 1:
        return lines[0]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


class LinesHash:
    """The SHA-256 of lines as a file of them would have it: for a job that was made from no file."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, line: bytes) -> None:
        self._hash.update(line)
        self._hash.update(b"\n")

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
