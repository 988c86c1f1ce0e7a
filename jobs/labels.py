"""Labels, which people put on jobs to find them again: what `--label` takes."""

import re
from collections.abc import Sequence

from db.errors import SettingsError
from db.labels import LabelFilter

_MAX_LABELS = 32
_MAX_KEY_CHARS = 63
_MAX_VALUE_CHARS = 255
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def parse_labels(given: Sequence[str]) -> dict[str, str]:
    """`team=eval` and the like, for a new job. SettingsError says which of them is none, and why."""
    labels: dict[str, str] = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign:
            raise SettingsError(f"--label {_shown(text)}: give KEY=VALUE, like team=eval")
        _check(text, key, value)
        if labels.setdefault(key, value) != value:
            raise SettingsError(
                f"--label {key} is given twice: {labels[key]} and {value}; a key has one value"
            )
    if len(labels) > _MAX_LABELS:
        raise SettingsError(f"--label is given {len(labels)} times; a job has up to {_MAX_LABELS} labels")
    return labels


def parse_label_filters(given: Sequence[str]) -> list[LabelFilter]:
    """`team=eval` for that value, `team` for any."""
    filters = []
    for text in given:
        key, sign, value = text.partition("=")
        _check(text, key, value if sign else None)
        filters.append(LabelFilter(key, value if sign else None))
    return filters


def _check(text: str, key: str, value: str | None) -> None:
    where = f"--label {_shown(text)}"
    if len(key) > _MAX_KEY_CHARS or not _KEY.fullmatch(key):
        raise SettingsError(
            f"{where}: a key has 1 to {_MAX_KEY_CHARS} of the letters a to z, digits and . _ - /,"
            " and begins with a letter or digit"
        )
    if value is not None and not (0 < len(value) <= _MAX_VALUE_CHARS and value.isprintable()):
        raise SettingsError(
            f"{where}: a value has 1 to {_MAX_VALUE_CHARS} characters, and no line's end in it"
        )


def _shown(text: str) -> str:
    """Short, and without what would do something to a terminal."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return shown if len(shown) <= _MAX_KEY_CHARS else shown[:_MAX_KEY_CHARS] + "…"
