"""One request laid out: what it is, its messages by role, what it was answered."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from db.outcomes import Outcome
from jobs.error_codes import explain
from jobs.forms.native import usage_of
from jobs.forms.openai import joined_events
from jobs.progress import format_time
from jobs.show import Shown
from jobs.shown.screen import BAD, FAINT, GOOD, MOVING, PLAIN, TITLE, Line
from jobs.shown.text import one_line, printable, printable_lines, wrapped

# its label, its text, and that one's style
Fact = tuple[str, str, str]

_LABEL_WIDTH = 11
# shown in places of their own
_LAID_OUT = {"custom_id", "prompt", "messages"}
_STATUS_STYLES = {"succeeded": GOOD, "running": MOVING, "pending": PLAIN}


def request_lines(shown: Shown, width: int | None) -> Iterator[Line]:
    """Facts are wrapped to `width`. What was asked and answered is not: a terminal wraps long lines by itself, and what
    is copied from it is whole."""
    for label, text, style in _facts(shown):
        first, *rest = wrapped(text, width, " " * _LABEL_WIDTH, f"{label:<{_LABEL_WIDTH - 1}} ")
        yield [(first[:_LABEL_WIDTH], FAINT), (first[_LABEL_WIDTH:], style)]
        for line in rest:
            yield [(line, style)]
    for title, text in _asked(shown.body):
        yield from _section(title, text)
    for title, text in _answered(shown.result):
        yield from _section(title, text, MOVING)


def _facts(shown: Shown) -> Iterator[Fact]:
    request = shown.request
    yield "request", f"{request.index} of {request.job_id}, which has 0 to {shown.num_requests - 1}", TITLE
    if request.custom_id is not None:
        yield "custom_id", printable(request.custom_id), PLAIN
    status = [request.status]
    if request.outcome is not None and request.outcome.finish_reason:
        status.append(f"finish reason {request.outcome.finish_reason}")
    if request.attempt:
        status.append(f"attempt {request.attempt}")
    if request.host is not None:
        status.append(f"on {printable(request.host)}")
    yield "status", ", ".join(status), _STATUS_STYLES.get(request.status, BAD)
    if request.started_at is not None:
        yield "started", format_time(request.started_at) or "", PLAIN
    if request.outcome is not None:
        yield from _outcome_facts(request.outcome)
    yield from _parameters(shown)


def _outcome_facts(outcome: Outcome) -> Iterator[Fact]:
    if outcome.finished_at is not None:
        yield "finished", format_time(outcome.finished_at) or "", PLAIN
    if (usage := usage_of(outcome)) is not None:
        yield "tokens", f"{usage['prompt_tokens']:,} prompt, {usage['completion_tokens']:,} completion", PLAIN
    if outcome.error_code is not None:
        yield "error", f"{outcome.error_code}: {one_line(outcome.error_message or '')}", BAD
        yield "what to do", explain(outcome.error_code).advice, PLAIN


def _parameters(shown: Shown) -> Iterator[Fact]:
    """What it ran with, and what else the line says."""
    params = shown.params or {}
    if params:
        yield "parameters", ", ".join(f"{name} {_json(value)}" for name, value in params.items()), PLAIN
    for name, value in (shown.body or {}).items():
        if name not in _LAID_OUT and name not in params and value is not None:
            yield "", f"{printable(name)} {_json(value)}", PLAIN


def _section(title: str, text: str, style: str = PLAIN) -> Iterator[Line]:
    yield []
    yield [(f"── {printable(title)} ──", f"{TITLE} {style}".strip())]
    for line in printable_lines(text):
        yield [(line, PLAIN)]


def _json(value: object) -> str:
    return printable(orjson.dumps(value).decode())


def _asked(body: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Title and text of each message. A body satisfied its card's schema, which may allow odd ones."""
    if body is None:
        return
    messages = body.get("messages")
    if body.get("prompt") is not None or not isinstance(messages, list):
        title = "prompt, raw" if body.get("raw") is True else "prompt"
        yield title, _content(body.get("prompt"))
        return
    for message in messages:
        if not isinstance(message, dict):
            yield "message", _content(message)
            continue
        role = " ".join(
            str(part)
            for part in (message.get("role"), message.get("name"), message.get("tool_call_id"))
            if part
        )
        calls = message.get("tool_calls")
        parts = [_content(message.get("content")), *_calls(calls if isinstance(calls, list) else [])]
        yield role or "message", "\n".join(part for part in parts if part)


def _content(content: object) -> str:
    """A text, or a list of parts, of which those that are no text are shown as JSON."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return _json(content)
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return "\n".join(
        text if isinstance(text, str) else _json(part) for text, part in zip(texts, content, strict=True)
    )


def _calls(calls: list[Any]) -> Iterator[str]:
    """In our form or OpenAI's."""
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else {}
        arguments = function.get("arguments")
        arguments = arguments if isinstance(arguments, str) else _json(arguments)
        yield f"calls {function.get('name')}({arguments})"


def _answered(result: Any) -> Iterator[tuple[str, str]]:
    """Title and text of each choice."""
    if result is None:
        return
    if isinstance(result, str):
        yield "response, as a stream", joined_events(result)
        return
    choices = result.get("choices")
    if not choices:
        yield "response", _answer(result)
        return
    for choice in choices:
        yield f"choice {choice['index']}, finish reason {choice.get('finish_reason')}", _answer(choice)


def _answer(choice: Mapping[str, Any]) -> str:
    parts = [choice.get("response") or "", *_calls(choice.get("tool_calls") or [])]
    if choice.get("logprobs") is not None:
        parts.append("(with logprobs: --json has them)")
    return "\n".join(part for part in parts if part)
