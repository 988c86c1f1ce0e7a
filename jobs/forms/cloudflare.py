"""The answer to a poll of Cloudflare's batch API: one JSON document, made piece by piece."""

from collections.abc import Iterable, Iterator

import orjson

from db.outcomes import Outcome
from jobs.forms.native import error_of

_BEGIN = b'{"result":{"responses":['
_END = b'},"success":true,"errors":[],"messages":[]}\n'


def poll_response(outcomes: Iterable[Outcome]) -> Iterator[bytes]:
    """The document's pieces: one for each outcome, and one around them at each end."""
    prompt_tokens = completion_tokens = 0
    separator = _BEGIN
    for outcome in outcomes:
        yield separator + _response(outcome)
        separator = b",\n"
        prompt_tokens += outcome.prompt_tokens or 0
        completion_tokens += outcome.completion_tokens or 0
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    yield (b"" if separator != _BEGIN else _BEGIN) + b'],"usage":' + orjson.dumps(usage) + _END


def _response(outcome: Outcome) -> bytes:
    response: dict[str, object] = {
        "id": outcome.index,
        "result": None if outcome.result is None else orjson.Fragment(outcome.result),
        "success": outcome.result is not None,
        "external_reference": outcome.custom_id,
    }
    if (error := error_of(outcome)) is not None:
        response["error"] = error
    return orjson.dumps(response)
