"""What the panel of a job that runs says, on as many lines and columns as there are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from db.activity import Activity, WorkerShare
from db.queries import Job
from jobs.shown.bar import PERCENT_WIDTH, bar, percent
from jobs.shown.one_job import state_of
from jobs.shown.screen import BAD, FAINT, MOVING, PLAIN, TITLE, Line, Piece
from jobs.shown.text import counted, cut, fit, format_duration, format_rate, printable, width_of

_MAX_BAR = 100
_LABEL_WIDTH = 12
_GAP = "  "


@dataclass(frozen=True)
class Glance:
    job: Job
    activity: Activity
    is_ready: bool


def live_panel(glance: Glance, width: int, height: int) -> list[Line]:
    """At most `height` lines; of the workers as many as there is room for, those with the most chunks first."""
    job = glance.job
    lines: list[Line] = [_title(glance, width), _bar(job, width), *_figures(glance, width)]
    room = height - len(lines)
    workers = glance.activity.running
    if len(workers) > room:
        lines += [_worker(share, width) for share in workers[: max(room - 1, 0)]]
        rest = len(workers) - max(room - 1, 0)
        lines.append([(cut(f"{_GAP}… and {counted(rest, 'more worker')}", width), FAINT)])
    else:
        lines += [_worker(share, width) for share in workers]
    return lines[: max(height, 1)]


def _title(glance: Glance, width: int) -> Line:
    job = glance.job
    state = state_of(job, is_ready=glance.is_ready)
    rest = _GAP.join(part for part in (printable(job.name or ""), job.card_name) if part)
    room = width - width_of(job.id + state) - 2 * len(_GAP)
    line = [(job.id, TITLE), (_GAP, PLAIN), (state, MOVING)]
    return _cut_line([*line, (_GAP + cut(rest, room) if room > 3 else "", PLAIN)], width)


def _bar(job: Job, width: int) -> Line:
    cells = max(min(width - PERCENT_WIDTH, _MAX_BAR), 0)
    return [*bar(job.counts, cells), (percent(job.counts), PLAIN)]


def _figures(glance: Glance, width: int) -> Iterator[Line]:
    job, now = glance.job, glance.activity
    done = [f"{job.counts.num_closed:,} of {job.counts.total:,}"]
    if now.elapsed_s is not None:
        done.append(f"{format_duration(now.elapsed_s)} so far")
    if job.eta_s is not None:
        done.append(f"{format_duration(job.eta_s)} left")
    yield from _field("done", done, width)
    num_run = job.counts.succeeded + job.counts.failed
    yield from _field("requests/s", _rates(job.requests_per_s, num_run, now), width)
    yield from _field("tokens/s", _rates(job.completion_tokens_per_s, job.completion_tokens, now), width)
    yield from _field("failed", _failures(job, now), width, BAD)
    if job.num_reused:
        yield from _field("reused", [f"{job.num_reused:,}"], width)
    if now.running:
        num_chunks = sum(share.num_chunks for share in now.running)
        parts = [counted(num_chunks, "chunk"), counted(job.counts.running, "request")]
        yield from _field("running", [*parts, counted(len(now.running), "worker")], width)


def _rates(recent: float | None, num: int, now: Activity) -> list[str]:
    """Those of the last minute, and since the job's first claim."""
    parts = [] if recent is None else [f"{format_rate(recent)} now"]
    if num and now.elapsed_s:
        parts.append(f"{format_rate(num / now.elapsed_s)} on average")
    return parts


def _failures(job: Job, now: Activity) -> list[str]:
    """How many in all, and of each code."""
    codes = sorted(now.failures.items(), key=lambda pair: (-pair[1], pair[0]))
    if len(codes) == 1:
        return [f"{job.counts.failed:,} {codes[0][0]}"]
    parts = [
        f"{min(num, now.most_counted):,}{'+' if num > now.most_counted else ''} {code}" for code, num in codes
    ]
    return [f"{job.counts.failed:,}: {parts[0]}", *parts[1:]] if parts else []


def _field(label: str, parts: Sequence[str], width: int, style: str = PLAIN) -> Iterator[Line]:
    """The parts after the label, and under each other where they do not fit; nothing without parts."""
    begin = label.ljust(_LABEL_WIDTH)
    texts: list[str] = []
    for part in parts:
        if texts and width_of(f"{begin}{texts[-1]}, {part}") <= width:
            texts[-1] += f", {part}"
        else:
            texts.append(part)
    for number, text in enumerate(texts):
        piece: Piece = (begin, FAINT) if number == 0 else (" " * _LABEL_WIDTH, PLAIN)
        yield _cut_line([piece, (text, style)], width)


def _worker(share: WorkerShare, width: int) -> Line:
    chunks = fit(counted(share.num_chunks, "chunk"), 9, is_number=True)
    load = f"{chunks}{_GAP}{counted(share.num_requests, 'request')}"
    who = f"{_GAP}{share.worker_id}{_GAP}{printable(share.host)}"
    room = max(width - width_of(load) - len(_GAP), 0)
    return _cut_line([(fit(who, min(room, width_of(who))), PLAIN), (f"{_GAP}{load}", PLAIN)], width)


def _cut_line(line: Line, width: int) -> Line:
    made: Line = []
    for text, style in line:
        made.append((cut(text, width), style))
        width -= width_of(made[-1][0])
    return [piece for piece in made if piece[0]]
