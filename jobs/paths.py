"""Which files a command line names: patterns that the shell left as they are, expanded."""

import glob
from collections.abc import Sequence
from pathlib import Path

from db.errors import InputError


def expand(given: Sequence[str]) -> list[str]:
    """`evals/*.jsonl` and `evals/**/*.jsonl` as the files that match, sorted; all else as it is, also a file whose
    name looks like a pattern. InputError for a folder, and for a pattern that no file matches."""
    return [path for one in given for path in _expand(one)]


def _expand(given: str) -> list[str]:
    path = Path(given)
    try:
        if path.is_dir():
            pattern = glob.escape(given.rstrip("/")) + "/*.jsonl"
            raise InputError(f"{given} is a folder; give its files, by a pattern like '{pattern}'")
        if given == "-" or not glob.has_magic(given) or path.exists():
            return [given]
        # as a shell would say them: with ./ and .. where the pattern has them, which Path.glob does away with
        matches = glob.glob(given, recursive=True)  # noqa: PTH207
        found = sorted({one for one in matches if not Path(one).is_dir()})
    except OSError:
        return [given]  # whoever opens it says what is wrong
    if not found:
        raise InputError(f"no file matches {given}; see what there is: ls {_folder(path)}")
    return found


def _folder(pattern: Path) -> Path:
    """The part of a pattern's path that names a folder outright."""
    while glob.has_magic(str(pattern)):
        pattern = pattern.parent
    return pattern
