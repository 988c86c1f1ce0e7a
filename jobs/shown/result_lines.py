"""A result on one line: for `tail`."""

from collections.abc import Iterable

from db.outcomes import Outcome
from db.states import ResultStatus
from jobs.comparison.answers import answers_of
from jobs.forms.native import format_line
from jobs.shown.screen import BAD, FAINT, GOOD, PLAIN, Line, Screen
from jobs.shown.text import cut, fit, one_line, printable, safe_json, width_of

_GAP = "  "
_MAX_ID_WIDTH = 20
# under it the custom_id and the tokens give way to the response
_NARROW = 60
_STATUS_WIDTH = 9
_TOKENS_WIDTH = 6


def print_results(found: Iterable[Outcome], num_requests: int, *, as_json: bool) -> None:
    """Each to stdout as soon as it is there."""
    screen = Screen()
    for outcome in found:
        if as_json:
            screen.write([[(safe_json(format_line(outcome).decode().rstrip()), PLAIN)]])
        else:
            screen.write([result_line(outcome, num_requests, screen.width)])


def result_line(outcome: Outcome, num_requests: int, width: int | None) -> Line:
    """Index, custom_id, status, completion tokens and what was answered. `width` cuts it to a line of the terminal."""
    index = f"{outcome.index:>{len(str(max(num_requests - 1, 0)))}}"
    style = GOOD if outcome.status is ResultStatus.SUCCEEDED else BAD
    line: Line = [(index, FAINT), (_GAP, PLAIN)]
    name = printable(outcome.custom_id or "")
    tokens = "" if outcome.completion_tokens is None else f"{outcome.completion_tokens:,}"
    if width is None:
        line += [(f"{name or '-'}{_GAP}{outcome.status.value}{_GAP}{tokens or '-'}{_GAP}", PLAIN)]
        return [*line, (_said(outcome), PLAIN)]
    if width >= _NARROW:
        line.append((fit(name, min(width // 5, _MAX_ID_WIDTH)) + _GAP, PLAIN))
    line.append((outcome.status.value.ljust(_STATUS_WIDTH) + _GAP, style))
    if width >= _NARROW:
        line.append((tokens.rjust(_TOKENS_WIDTH) + _GAP, FAINT))
    room = width - sum(width_of(text) for text, _ in line)
    return [*line, (cut(_said(outcome, 4 * width), room), PLAIN)]


def _said(outcome: Outcome, max_chars: int | None = None) -> str:
    """The answers, or the error; of a text of megabytes no more is looked at than can be seen."""
    if outcome.error_code is not None:
        return one_line(f"{outcome.error_code}: {(outcome.error_message or '')[:max_chars]}")
    return one_line(" | ".join(text[:max_chars] for text in answers_of(outcome)))
