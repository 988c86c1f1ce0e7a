"""The file that takes all errors of a check."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from db.errors import OutputError, why


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
        return OutputError(f"cannot write {self._path}: {why(error)}")


def open_errors_file(path: str | None, input_paths: Sequence[str]) -> ErrorsFile | None:
    """A new private file for all errors of a check, as JSONL; None for no path."""
    if path is None:
        return None
    try:
        if any(_is_same_file(path, one) for one in input_paths):
            raise OutputError(f"{path} is the input; give the errors another file")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        return ErrorsFile(path, os.fdopen(descriptor, "w", encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {why(error)}") from error


def _is_same_file(path: str, other: str) -> bool:
    return Path(path).exists() and Path(other).exists() and Path(path).samefile(other)
