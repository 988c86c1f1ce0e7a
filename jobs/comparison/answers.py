"""What a request was answered: the text of each choice, without what says nothing of it (logprobs, event framing)."""

from typing import Any

import orjson

from db.outcomes import Outcome
from jobs.forms.openai import joined_events


def answers_of(outcome: Outcome) -> list[str]:
    """One text for each choice, in order; nothing for a request that did not succeed. Tool calls are there as JSON,
    after the text or in its place."""
    if outcome.result is None:
        return []
    result = orjson.loads(outcome.result)
    if isinstance(result, str):
        return [joined_events(result)]
    return [_text_of(choice) for choice in result.get("choices") or [result]]


def _text_of(choice: dict[str, Any]) -> str:
    parts = [choice.get("response") or ""]
    if calls := choice.get("tool_calls"):
        parts.append(orjson.dumps(calls).decode())
    return "\n".join(part for part in parts if part)


def request_of(outcome: Outcome) -> dict[str, Any]:
    """The line as it was handed in; empty for a bad one."""
    request = orjson.loads(outcome.body) if outcome.body is not None else {}
    return request if isinstance(request, dict) else {}
