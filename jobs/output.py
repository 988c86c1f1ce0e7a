"""Output files: private, and there whole or not at all."""

import io
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from db.errors import OutputError, why

_BUFFER_BYTES = 1024 * 1024
# in UTF-8; ends of lines and tabs stay
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|\xc2[\x80-\x9f]")
_REPLACEMENT = "\ufffd".encode()


def check_output(path: str) -> None:
    """OutputError when `path` cannot be written: better before the work than after it."""
    if path == "-":
        return
    if is_stream(path):
        if not os.access(path, os.W_OK):
            raise OutputError(f"cannot write to {path}; ls -ld {path} shows who may do so")
        return
    target = resolve(path)
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_folder = target.is_dir()
    except OSError as error:
        raise OutputError(f"cannot write {target}: {why(error)}") from error
    if is_folder:
        raise OutputError(f"{target} is a folder; give the name of a file")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write into {folder}; ls -ld {folder} shows who may do so")


def is_stream(path: str) -> bool:
    """Whether this is stdout, or a pipe or a device, which a rename would replace by a file. Asked of the path as it
    was given: what /dev/stdout leads to has no path of its own."""
    if path == "-":
        return True
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def resolve(path: str) -> Path:
    try:
        return Path(path).resolve()
    except RuntimeError as error:
        raise OutputError(
            f"{path} is a symbolic link that leads back to itself; give another file"
        ) from error


def stdout_bytes() -> IO[bytes]:
    """stdout as it is; where it is a terminal, without the control characters that responses may hold, and which it
    would obey: replacement characters stand in their place."""
    if not sys.stdout.isatty():
        return sys.stdout.buffer
    return cast(IO[bytes], _TerminalOutput(sys.stdout.buffer))


class _TerminalOutput(io.RawIOBase):
    def __init__(self, to: IO[bytes]) -> None:
        self._to = to

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._to.write(_CONTROL.sub(_REPLACEMENT, bytes(data)))
        return len(data)

    def flush(self) -> None:
        self._to.flush()


@contextmanager
def output(path: str, is_wanted: Callable[[], bool] = lambda: True) -> Iterator[IO[bytes]]:
    """A file to write, which appears under its name at the end, unless it is not wanted then; `-` is stdout."""
    if path == "-":
        try:
            stdout = stdout_bytes()
            yield stdout
            stdout.flush()
        except BrokenPipeError:
            raise  # whoever reads has seen enough
        except OSError as error:
            raise OutputError(f"cannot write to stdout: {why(error)}") from error
        return
    to_stream = is_stream(path)
    target = Path(path) if to_stream else resolve(path)
    try:
        if to_stream:
            with target.open("wb", _BUFFER_BYTES) as file:
                yield file
            return
        with _temporary(target) as (temporary, file):
            yield file
            if is_wanted():
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {why(error)}. Nothing of it was kept") from error


@contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A private file beside `target`, gone afterwards unless it was renamed."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb", _BUFFER_BYTES) as file:
            yield temporary, file
    finally:
        temporary.unlink(missing_ok=True)
