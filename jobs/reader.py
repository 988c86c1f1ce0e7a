"""Reading an input file line by line in bounded memory: plain, gzip or zstd, from a path or from stdin."""

import gzip
import hashlib
import io
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from db.errors import InputError

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


# One line that is not blank, without its end: its number, which counts every line of the file from 1, and its bytes.
# None for a line longer than allowed, whose bytes were skipped. A plain tuple, since there are millions.
RawLine = tuple[int, bytes | None]


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


class InputFile:
    """A file of lines, read once from its start to its end. `-` is stdin.

    InputError names the file, and the line where it stops being readable.
    """

    def __init__(self, path: str) -> None:
        self.name = "stdin" if path == "-" else path
        self._owned: IO[bytes] | None = None
        if path == "-":
            if sys.stdin is None:  # as Python has it for a process that was started without one
                raise InputError("there is no stdin to read from; give the name of a file")
            raw: IO[bytes] = sys.stdin.buffer
        else:
            raw = self._owned = self._open(Path(path))
        self._hashed = _Hashed(raw)
        self._buffered = io.BufferedReader(self._hashed, _BUFFER_BYTES)

    def _open(self, path: Path) -> IO[bytes]:
        try:
            if path.is_dir():
                raise InputError(f"{path} is a folder; give a file of lines")
            return path.open("rb")
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error

    def blocks(self, max_line_bytes: int) -> Iterator[list[RawLine]]:
        """Every line that is not blank, as many at once as were read at once: some hundreds, unless they are long."""
        number = 0
        try:
            for lines in self._whole_lines(max_line_bytes):
                first, number = number + 1, number + len(lines)
                yield [
                    (at, text)
                    for at, data in enumerate(lines, first)
                    if (text := data and data.strip(_BLANK)) or data is None
                ]
        except (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
            raise InputError(
                f"{self.name}: the compressed data is damaged or cut off after line {number}; make the file again"
            ) from error
        except OSError as error:
            raise InputError(f"{self.name}: cannot read on after line {number}: {error.strerror}") from error

    def _whole_lines(self, max_line_bytes: int) -> Iterator[list[bytes | None]]:
        """All lines without their ends, those at once that end in one block; None for one that is too long."""
        pieces: list[bytes] = []  # of the line whose end is still to come
        num_bytes = 0
        for block in self._blocks():
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

    def _blocks(self) -> Iterator[bytes]:
        stream = self._decompressed()
        yield stream.read(len(_BOM)).removeprefix(_BOM)
        while block := stream.read1(_BUFFER_BYTES):
            yield block

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
        while self._buffered.read(_BUFFER_BYTES):
            pass
        return self._hashed.hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._owned is not None:
            self._owned.close()


def hash_file(path: str) -> str | None:
    """SHA-256 of a regular file; None for stdin, a pipe or what cannot be read."""
    try:
        if path == "-" or not Path(path).is_file():
            return None
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
