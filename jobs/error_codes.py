"""Why a request failed: every code that a result can have, what it means, and what to do about it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorCode:
    code: str
    meaning: str
    advice: str


_MEND_LINE = (
    "mend the line, and submit it again; promptmill validate FILE --errors bad.jsonl finds all of them"
)

ERROR_CODES = {
    one.code: one
    for one in (
        ErrorCode("invalid_json", "the line is not JSON", _MEND_LINE),
        ErrorCode(
            "line_limit_exceeded",
            "the line is longer than `max_line_bytes`, or nested more deeply than `max_line_depth`",
            "make it shorter, or raise PROMPTMILL_MAX_LINE_BYTES or PROMPTMILL_MAX_LINE_DEPTH",
        ),
        ErrorCode("invalid_request", "the card's schema refuses it", _MEND_LINE),
        ErrorCode(
            "invalid_parameter",
            "the schema allows it, and the engine does not: a `max_tokens` under 1, an impossible sampling parameter,"
            " tool or response format",
            _MEND_LINE,
        ),
        ErrorCode(
            "invalid_messages",
            "an empty list of messages, a role that is no text, or what the model's chat template refuses",
            "mend the messages: most templates want user and assistant in turns, a system message only at the start",
        ),
        ErrorCode(
            "unknown_field",
            "with `--strict`: the schema does not know the field",
            "mend the field's name, or leave out --strict",
        ),
        ErrorCode(
            "invalid_custom_id",
            "the custom_id is no text, longer than 512 characters, or holds a NUL",
            _MEND_LINE,
        ),
        ErrorCode(
            "duplicate_custom_id", "an earlier line has this custom_id", "give each line one of its own"
        ),
        ErrorCode(
            "unsupported_schema",
            "the engine cannot hold an answer to this JSON Schema",
            "make the schema simpler: docs/models.md says what works",
        ),
        ErrorCode("input_empty", "the prompt has no tokens", "give it a prompt, or take the line out"),
        ErrorCode(
            "unsupported",
            "OpenAI's form has it, and the engine does not do it",
            "take out what the message names: docs/formats.md says what works",
        ),
        ErrorCode(
            "unknown_model",
            "an OpenAI line names another model, and `--model` was not given",
            "submit it with --model CARD, which then holds for every line",
        ),
        ErrorCode(
            "input_too_long",
            "more prompt tokens than the card's `max_input_length`",
            "make the prompt shorter, or take a model with a longer context",
        ),
        ErrorCode(
            "max_total_tokens_exceeded",
            "prompt tokens + `max_tokens` are more than the card's `max_total_tokens`",
            "lower max_tokens, or make the prompt shorter",
        ),
        ErrorCode(
            "engine_error",
            "the engine refused this request",
            "the message says why; submit it again if it was no fault of the request",
        ),
        ErrorCode(
            "engine_crash",
            "its worker died while it ran alone",
            "look into the worker's log; submit it again with a lower max_tokens, or on a machine with more memory",
        ),
        ErrorCode("cancelled", "the job was cancelled before it ran", "submit it again"),
        ErrorCode(
            "expired",
            "the job passed its `--deadline` before it ran",
            "submit it again with a later --deadline",
        ),
    )
}

_UNKNOWN = ErrorCode("", "a code of another version of promptmill", "the message says more")


def explain(code: str) -> ErrorCode:
    """A database may hold codes of a newer promptmill; these are said to be such."""
    return ERROR_CODES.get(code, _UNKNOWN)
