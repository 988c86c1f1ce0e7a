"""Which dialect a file speaks, by how it begins."""

import re
from typing import Any

import orjson

from db.states import InputFormat

_NAMES_OF_TABLES = re.compile(r"\.(?:csv|tsv)(?:\.gz|\.zst)?$", re.IGNORECASE)
_NAMES_OF_LINES = re.compile(r"\.(?:jsonl|ndjson|json)(?:\.gz|\.zst)?$", re.IGNORECASE)
_KEY = re.compile(rb'"((?:[^"\\]|\\.)*+)"\s*+(:?)|[\[\]{}]', re.DOTALL)
_REQUEST_FIELDS = {"prompt", "messages"}
# What nobody but OpenAI has beside a body.
_ENVELOPE = {"url", "method", "custom_id"}


def detect(head: bytes, name: str, *, is_mapped: bool) -> InputFormat:
    """`head` is what it begins with, decompressed; `is_mapped` whether columns were named, or a template."""
    text = head.lstrip(b" \t\r\n")
    if text[:1] not in (b"{", b"["):
        is_table = (
            (is_mapped and not _NAMES_OF_LINES.search(name))
            or _NAMES_OF_TABLES.search(name)
            or _has_request_columns(text)
        )
        return InputFormat.CSV if text and is_table else InputFormat.CARD
    line, _, rest = text.partition(b"\n")
    try:
        first = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _detect_unfinished(text)
    if isinstance(first, list):
        # with more after it, it is a line, if a bad one
        return InputFormat.CARD if rest.strip() else InputFormat.ARRAY
    return _detect_object(set(first), is_list=isinstance(first.get("requests"), list))


def is_openai(value: Any) -> bool:
    """Whether a parsed line has the form of OpenAI's, right or wrong in its parts."""
    return isinstance(value, dict) and _detect_object(set(value), is_list=False) is InputFormat.OPENAI


def _detect_object(names: set[str], *, is_list: bool) -> InputFormat:
    if names & _REQUEST_FIELDS:
        return InputFormat.CARD
    if "body" in names and names & _ENVELOPE:
        return InputFormat.OPENAI
    return InputFormat.CLOUDFLARE if is_list and "requests" in names else InputFormat.CARD


def _detect_unfinished(head: bytes) -> InputFormat:
    """Of a document over several lines, or one line that is longer than the head: by its outermost names."""
    if head[:1] == b"[":
        return InputFormat.ARRAY
    names, depth = set(), 0
    for found in _KEY.finditer(head):
        if found[1] is None:
            depth += 1 if found[0] in b"[{" else -1
        elif depth == 1 and found[2]:
            names.add(found[1].decode("utf-8", "replace"))
    return _detect_object(names, is_list=True)


def _has_request_columns(head: bytes) -> bool:
    header = next(iter(head.splitlines()), b"").decode("utf-8", "replace")
    columns = [name.strip(' "') for name in header.split(delimiter_of(header))]
    # one word alone may as well be a line that is no JSON
    return len(columns) > 1 and not _REQUEST_FIELDS.isdisjoint(columns)


def delimiter_of(header: str) -> str:
    """The sign that parts a table's columns, by its header: a comma unless another is more frequent."""
    outside = re.sub(r'"[^"]*"', "", header)
    return max(",;\t", key=outside.count)
