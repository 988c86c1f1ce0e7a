"""Writing a job's outcomes as result lines, in input order, streamed."""

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import orjson

from db import queries
from db.database import Database
from db.errors import OutputError
from db.queries import Outcome

_BUFFER_BYTES = 1024 * 1024


def format_line(outcome: Outcome) -> bytes:
    """One result line, with its end."""
    error = None
    if outcome.error_code is not None:
        error = {"code": outcome.error_code, "message": outcome.error_message}
    usage = None
    if outcome.prompt_tokens is not None and outcome.completion_tokens is not None:
        usage = {
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
        }
    return orjson.dumps(
        {
            "index": outcome.index,
            "custom_id": outcome.custom_id,
            "status": outcome.status,
            "result": None if outcome.result is None else orjson.Fragment(outcome.result),
            "finish_reason": outcome.finish_reason,
            "usage": usage,
            "error": error,
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def export(database: Database, job_id: str, path: str) -> int:
    """Write every outcome there is by now to `path` (`-` is stdout); the number of lines.

    The file appears whole or not at all: it is written under a temporary name beside it, and renamed.
    OutputError when that cannot be done, NotFoundError when the job is deleted meanwhile; then the file that was
    there before is untouched.
    """
    queries.get_job(database, job_id)
    check_output(path)
    num_lines = 0
    with _output(path) as file:
        for num_lines, outcome in enumerate(queries.iterate_outcomes(database, job_id), 1):  # noqa: B007  the last one
            file.write(format_line(outcome))
        # deleted meanwhile, it lacks rows: invisible comes first, so whoever is visible now was whole until now
        queries.get_job(database, job_id)
    return num_lines


def check_output(path: str) -> None:
    """OutputError when `path` cannot be written: better before the work than after it."""
    if path == "-":
        return
    if _is_stream(path):
        if not os.access(path, os.W_OK):
            raise OutputError(f"cannot write to {path}")
        return
    target = _resolve(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {target.parent}: {error.strerror}") from error
    if target.is_dir():
        raise OutputError(f"{target} is a folder; give the name of a file")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"cannot write into {target.parent}")


def _is_stream(path: str) -> bool:
    """Whether this is a pipe or a device, which a rename would replace by a file. Asked of the path as it was
    given: what /dev/stdout leads to has no path of its own."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _resolve(path: str) -> Path:
    try:
        return Path(path).resolve()
    except RuntimeError as error:
        raise OutputError(f"{path} is a symbolic link that leads back to itself") from error


@contextmanager
def _output(path: str) -> Iterator[IO[bytes]]:
    if path == "-":
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise  # whoever reads has seen enough
        except OSError as error:
            raise OutputError(f"cannot write to stdout: {error.strerror}") from error
        return
    is_stream = _is_stream(path)
    target = Path(path) if is_stream else _resolve(path)
    try:
        if is_stream:
            with target.open("wb", _BUFFER_BYTES) as file:
                yield file
            return
        with _temporary(target) as (temporary, file):
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}; nothing of it was kept") from error


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
