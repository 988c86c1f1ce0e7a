"""A job's failures by code, with what each means and examples."""

from collections.abc import Iterator, Sequence

from db.activity import FailedRequest, FailureGroup
from db.queries import Job
from jobs.error_codes import explain
from jobs.shown.screen import BAD, FAINT, PLAIN, TITLE, Line
from jobs.shown.text import counted, cut, one_line, printable, wrapped

_INDENT = "  "


def failure_lines(job: Job, groups: Sequence[FailureGroup], width: int | None) -> Iterator[Line]:
    """Prose is wrapped to `width`, an example's message is cut to a line; None does neither."""
    num_failed = sum(group.num for group in groups)
    of_all = f"of {counted(job.counts.total, 'request')} of {job.id}"
    if not groups:
        yield from _prose(f"none {of_all} failed", width)
    else:
        yield from _prose(f"{num_failed:,} {of_all} failed ({_share(num_failed, job)})", width, style=TITLE)
    for name, num in (("was cancelled", job.counts.cancelled), ("expired", job.counts.expired)):
        if num:
            yield from _prose(f"{num:,} never ran, because the job {name}", width)
    for group in groups:
        yield []
        yield from _group(job, group, width)


def _group(job: Job, group: FailureGroup, width: int | None) -> Iterator[Line]:
    known = explain(group.code)
    yield [(group.code, BAD), (f"{_INDENT}{group.num:,} ({_share(group.num, job)})", PLAIN)]
    yield from _prose(known.meaning.replace("`", ""), width, _INDENT)
    yield from _prose(f"what to do: {known.advice}", width, _INDENT)
    for example in group.examples:
        line = f"{_INDENT}{_example(example)}"
        yield [(line if width is None else cut(line, width), FAINT)]
    if group.examples:
        yield from _prose(f"all of one: promptmill show {job.id} {group.examples[0].index}", width, _INDENT)


def _prose(text: str, width: int | None, indent: str = "", style: str = PLAIN) -> Iterator[Line]:
    for line in wrapped(text, width, indent):
        yield [(line, style)]


def _share(num: int, job: Job) -> str:
    """Never `0%` for some, nor `100%` for not all."""
    share = num * 100 / max(job.counts.total, 1)
    if num and share < 0.1:
        return "under 0.1%"
    return f"{share:.0f}%" if share in (0, 100) else f"{min(share, 99.9):.1f}%"


def _example(example: FailedRequest) -> str:
    name = "" if example.custom_id is None else f"{printable(example.custom_id)}{_INDENT}"
    return f"{example.index}{_INDENT}{name}{one_line(example.message)}"
