"""Lines of OpenAI's Batch API: those of its output file and those of its error file, which have one shape."""

import hashlib
from collections.abc import Callable
from typing import Any

import orjson

from db.outcomes import Outcome
from db.queries import Job
from db.states import ResultStatus
from jobs.forms.native import usage_of

_EVENT = "data: "
# What OpenAI's own error lines say of requests that never ran.
_NEVER_RAN = {
    ResultStatus.CANCELLED: ("batch_cancelled", "This request was cancelled before it ran."),
    ResultStatus.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
}


def openai_formatter(job: Job) -> Callable[[Outcome], bytes]:
    """Outcomes with bodies as lines. Ids follow from the job's and the index, so that a second export has the same."""

    def format_openai(outcome: Outcome) -> bytes:
        key = _hash(job.id, outcome.index)
        response, error = None, None
        if outcome.result is not None:
            body = _completion(job, outcome, key)
            response = {"status_code": 200, "request_id": f"req_{key}", "body": body}
        elif outcome.status in _NEVER_RAN:
            code, message = _NEVER_RAN[outcome.status]
            error = {"code": code, "message": message}
        else:
            status_code, body = _refusal(outcome)
            response = {"status_code": status_code, "request_id": f"req_{key}", "body": body}
        line = {
            "id": f"batch_req_{key}",
            # whoever has none matches by the index
            "custom_id": f"request-{outcome.index}" if outcome.custom_id is None else outcome.custom_id,
            "response": response,
            "error": error,
        }
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

    return format_openai


def _hash(*parts: object) -> str:
    return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:24]


def _refusal(outcome: Outcome) -> tuple[int, dict[str, Any]]:
    """As the endpoint itself would have answered: the request's fault, or the server's."""
    is_ours = (outcome.error_code or "").startswith("engine_")
    error = {
        "message": outcome.error_message,
        "type": "server_error" if is_ours else "invalid_request_error",
        "param": None,
        "code": outcome.error_code,
    }
    return 500 if is_ours else 400, {"error": error}


def _completion(job: Job, outcome: Outcome, key: str) -> dict[str, Any]:
    result = orjson.loads(outcome.result or "{}")
    if isinstance(result, str):
        result = {"response": joined_events(result)}
    choices = result.get("choices") or [{**result, "index": 0, "finish_reason": outcome.finish_reason}]
    is_text = _is_text_completion(outcome.body)
    as_choice = _text_choice if is_text else _chat_choice
    return {
        "id": f"{'cmpl' if is_text else 'chatcmpl'}-{key}",
        "object": "text_completion" if is_text else "chat.completion",
        "created": int(outcome.finished_at or 0),
        "model": job.card_name,
        "choices": [as_choice(choice, (job.id, outcome.index, choice["index"])) for choice in choices],
        "usage": usage_of(outcome),
    }


def _is_text_completion(body: str | None) -> bool:
    """A prompt that went in as it is was one of /v1/completions; through the chat template, of /v1/chat/completions."""
    request = orjson.loads(body or "{}")
    return "prompt" in request and request.get("raw") is True


def joined_events(events: str) -> str:
    """The text that the events of a stream make up."""
    data = (line[len(_EVENT) :] for line in events.split("\n") if line.startswith(_EVENT))
    return "".join(orjson.loads(one).get("response") or "" for one in data if one != "[DONE]")


def _chat_choice(choice: dict[str, Any], key: tuple[object, ...]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.get("response"), "refusal": None}
    finish_reason = choice.get("finish_reason")
    if calls := choice.get("tool_calls"):
        message["content"] = choice.get("response") or None
        message["tool_calls"] = [_tool_call(call, (*key, number)) for number, call in enumerate(calls)]
        finish_reason = "tool_calls" if finish_reason == "stop" else finish_reason
    return {
        "index": choice["index"],
        "message": message,
        "logprobs": choice.get("logprobs"),
        "finish_reason": finish_reason,
    }


def _tool_call(call: dict[str, Any], key: tuple[object, ...]) -> dict[str, Any]:
    arguments = orjson.dumps(call.get("arguments", {})).decode()
    function = {"name": call.get("name"), "arguments": arguments}
    return {"id": f"call_{_hash(*key)}", "type": "function", "function": function}


def _text_choice(choice: dict[str, Any], _: tuple[object, ...]) -> dict[str, Any]:
    return {
        "index": choice["index"],
        "text": choice.get("response"),
        "logprobs": _text_logprobs(choice.get("logprobs")),
        "finish_reason": choice.get("finish_reason"),
    }


def _text_logprobs(logprobs: dict[str, Any] | None) -> dict[str, Any] | None:
    """The chat endpoint's form as the older one of /v1/completions."""
    if not logprobs or "content" not in logprobs:
        return logprobs
    content = logprobs["content"] or []
    offsets, offset = [], 0
    for one in content:
        offsets.append(offset)
        offset += len(one["token"])
    return {
        "tokens": [one["token"] for one in content],
        "token_logprobs": [one["logprob"] for one in content],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in one.get("top_logprobs") or []} for one in content
        ],
        "text_offset": offsets,
    }
