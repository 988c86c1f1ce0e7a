"""Result lines in promptmill's own form."""

from collections.abc import Callable

import orjson

from db.outcomes import Outcome


def usage_of(outcome: Outcome) -> dict[str, int] | None:
    if outcome.prompt_tokens is None or outcome.completion_tokens is None:
        return None
    return {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
    }


def error_of(outcome: Outcome) -> dict[str, str | None] | None:
    if outcome.error_code is None:
        return None
    return {"code": outcome.error_code, "message": outcome.error_message}


def format_line(outcome: Outcome) -> bytes:
    """One result line, with its end. Only one that was not generated has `reused_from`."""
    line = {
        "index": outcome.index,
        "custom_id": outcome.custom_id,
        "status": outcome.status,
        "result": None if outcome.result is None else orjson.Fragment(outcome.result),
        "finish_reason": outcome.finish_reason,
        "usage": usage_of(outcome),
        "error": error_of(outcome),
    }
    if outcome.reused_from is not None:
        line["reused_from"] = outcome.reused_from
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def line_formatter(
    *, with_position: bool, with_input: bool, with_params: bool = False, with_job: bool = False
) -> Callable[[Outcome], bytes]:
    """`format_line` with what was asked for at the line's end."""
    if not with_position and not with_input and not with_params and not with_job:
        return format_line

    def format_more(outcome: Outcome) -> bytes:
        more: dict[str, object] = {}
        if with_position:
            more["position"] = outcome.position
        if with_job:
            more["job"] = outcome.job_id
        if with_params:
            more["params"] = None if outcome.params is None else orjson.Fragment(outcome.params)
        if with_input:
            more["request"] = None if outcome.body is None else orjson.Fragment(outcome.body)
        end = orjson.dumps(more, option=orjson.OPT_APPEND_NEWLINE)
        return format_line(outcome)[: -len(b"}\n")] + b"," + end[1:]

    return format_more
