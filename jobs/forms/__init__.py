"""The forms that results come out in, and which one is meant when none is named."""

from enum import StrEnum
from pathlib import Path

from db.errors import SettingsError
from db.states import InputFormat


class Form(StrEnum):
    JSONL = "jsonl"
    OPENAI = "openai"
    CLOUDFLARE = "cloudflare"
    CSV = "csv"
    PARQUET = "parquet"


_BY_ENDING = {".csv": Form.CSV, ".parquet": Form.PARQUET}
_BY_INPUT = {
    InputFormat.CARD: Form.JSONL,
    InputFormat.ARRAY: Form.JSONL,
    InputFormat.OPENAI: Form.OPENAI,
    InputFormat.CLOUDFLARE: Form.CLOUDFLARE,
    InputFormat.CSV: Form.CSV,
    InputFormat.PARQUET: Form.PARQUET,
}
# Rows with columns of our choosing, or lines with fields of it; the others are somebody else's documents.
OURS = (Form.JSONL, Form.CSV, Form.PARQUET)
# What is whole at each line's end, so that lines may be added later.
LINES = (Form.JSONL, Form.OPENAI, Form.CSV)


def named_form(name: str | None, path: str) -> Form | None:
    """The form that the option or the output file's ending names; None when that is left to the input's own.
    SettingsError for one that cannot be made here."""
    form = Form(name) if name else _BY_ENDING.get(Path(path).suffix.lower())
    if form is Form.PARQUET:
        need_pyarrow()
    return form


def choose_form(name: str | None, path: str, input_format: InputFormat) -> Form:
    """As `named_form`; what is not named comes back as it came in. Parquet does so into a file alone."""
    form = named_form(name, path) or _BY_INPUT[input_format]
    if form is Form.PARQUET:
        if not name and path == "-":
            return Form.JSONL
        need_pyarrow()
    return form


def need_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401  only whether it is there
    except ImportError as error:
        raise SettingsError(
            "the format parquet needs the package pyarrow; install it with: pip install 'promptmill[export]'"
        ) from error
