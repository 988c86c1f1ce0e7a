"""What vLLM gives back of a request, in our terms."""

import json
from typing import Any

from jobs.structured import UNSUPPORTED
from workers.engine import EngineRequest, Failure

# what OpenAI has for a token that could not come: minus infinity is no JSON
_LEAST_LOGPROB = -9999.0


def failure_of(request: EngineRequest, one: Any, text: str) -> Failure | None:
    """Why a completion that ended is none; vLLM may end one early that it could not hold to its schema."""
    reason = one.finish_reason
    # a stop text of the request's own may end it anywhere
    ends_itself = reason == "stop" and not isinstance(one.stop_reason, str)
    if request.schema is not None and (reason == "error" or (ends_itself and not _is_json(text))):
        return Failure(request.key, "the engine cannot hold a completion to its schema", code=UNSUPPORTED)
    if reason in ("stop", "length"):
        return None
    return Failure(request.key, f"the engine gave it up ({reason})", is_transient=True)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def logprobs_of(completion: Any, num_top: int) -> list[dict[str, Any]] | None:
    """As in OpenAI's `content`: each token with the `num_top` likeliest, of which it may be one."""
    if completion.logprobs is None:
        return None
    content = []
    for token_id, position in zip(completion.token_ids, completion.logprobs, strict=True):
        ranked = sorted(position.values(), key=lambda one: one.rank)
        top = [_logprob(one) for one in ranked[:num_top]]
        content.append({**_logprob(position[token_id]), "top_logprobs": top})
    return content


def _logprob(one: Any) -> dict[str, Any]:
    token = one.decoded_token or ""
    return {"token": token, "logprob": max(one.logprob, _LEAST_LOGPROB), "bytes": list(token.encode())}
