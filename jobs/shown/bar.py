"""A job's progress as a bar of a few cells."""

from db.queries import Counts
from jobs.shown.screen import BAD, FAINT, GOOD, MOVING, Line

# told apart by their shapes, where there are no colours
_DONE, _RUNNING, _LEFT = "━", "╍", "─"
PERCENT_WIDTH = 5


def bar(counts: Counts, width: int) -> Line:
    """Succeeded, failed, running and the rest, in `width` cells: full only when all have a result, and with at least
    one cell for what failed."""
    total = max(counts.total, 1)
    num_over = counts.succeeded + counts.failed
    done = num_over * width // total
    failed = min(done, -(-counts.failed * width // total))
    if counts.failed and width:
        done, failed = max(done, 1), max(failed, 1)
    running = min(width - done, -(-counts.running * width // total))
    cells = (
        (_DONE * (done - failed), GOOD),
        (_DONE * failed, BAD),
        (_RUNNING * running, MOVING),
        (_LEFT * (width - done - running), FAINT),
    )
    return [(text, style) for text, style in cells if text]


def percent(counts: Counts) -> str:
    """`   7%` have a result; 100 only when all have."""
    share = (counts.succeeded + counts.failed) * 100 // max(counts.total, 1)
    return f"{share:>{PERCENT_WIDTH - 1}}%"
