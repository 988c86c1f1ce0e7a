"""Choosing requests by what came of them: `--where FIELD=VALUE`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from db.errors import SettingsError
from db.outcomes import Outcome
from db.states import ResultStatus
from jobs.error_codes import ERROR_CODES

STATUSES = tuple(status.value for status in ResultStatus)
FINISH_REASONS = ("stop", "length")
# What may pass, or may be mended outside of the request: the same request can succeed where it is.
RETRYABLE_CODES = ("engine_error", "engine_crash")
_CHOICES: Mapping[str, Sequence[str]] = {
    "status": STATUSES,
    "code": (*RETRYABLE_CODES, *(code for code in ERROR_CODES if code not in RETRYABLE_CODES)),
    "finish_reason": FINISH_REASONS,
}
_GETTERS: Mapping[str, Callable[[Outcome], str | None]] = {
    "status": lambda outcome: outcome.status.value,
    "code": lambda outcome: outcome.error_code,
    "finish_reason": lambda outcome: outcome.finish_reason,
    "custom_id": lambda outcome: outcome.custom_id,
    "index": lambda outcome: str(outcome.index),
}


@dataclass(frozen=True)
class Where:
    """Values by field: of each field one must fit."""

    values: Mapping[str, frozenset[str]]

    def fits(self, outcome: Outcome) -> bool:
        return all(_GETTERS[name](outcome) in values for name, values in self.values.items())

    def __str__(self) -> str:
        return ", ".join(
            f"{name}={' or '.join(sorted(values))}" for name, values in sorted(self.values.items())
        )


NOT_SUCCEEDED = Where({"status": frozenset(STATUSES) - {ResultStatus.SUCCEEDED.value}})


def parse_where(texts: Sequence[str]) -> Where:
    """Without any, everything that did not succeed. SettingsError for a field or a value that there is not."""
    if not texts:
        return NOT_SUCCEEDED
    values: dict[str, frozenset[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in _GETTERS:
            raise SettingsError(f"--where {text}: give FIELD=VALUE, of the fields {', '.join(_GETTERS)}")
        if value not in _CHOICES.get(name, [value]):
            raise SettingsError(f"--where {text}: {name} is one of {', '.join(_CHOICES[name])}")
        if name == "index":
            value = _canonical_index(text, value)
        values[name] = values.get(name, frozenset()) | {value}
    return Where(values)


def _canonical_index(text: str, value: str) -> str:
    if not value.isascii() or not value.isdecimal():
        raise SettingsError(f"--where {text}: an index is a whole number, counted from 0")
    return str(int(value)) if len(value) <= 20 else value


def parse_retry(texts: Sequence[str]) -> tuple[str, ...]:
    """The codes of failed requests that are to run again in place; SettingsError for what would fail again."""
    codes = []
    for text in texts:
        name, _, code = text.partition("=")
        if name != "code" or code not in ERROR_CODES:
            known = ", ".join(RETRYABLE_CODES)
            raise SettingsError(f"--where {text}: retry takes code=…, of {known}; rerun takes every field")
        if code not in RETRYABLE_CODES:
            raise SettingsError(
                f"--where {text}: the same request would fail again; change it: promptmill rerun JOB --where {text}"
                " --set FIELD=VALUE"
            )
        codes.append(code)
    return tuple(codes) or RETRYABLE_CODES
