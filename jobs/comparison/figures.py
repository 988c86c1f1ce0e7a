"""The figures of a comparison as rows that every report shows, and as JSON."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from db.queries import Job
from jobs.comparison.compare import Comparison, Score, Tally, notes_of
from jobs.comparison.examples import Example, diff_lines
from jobs.progress import job_as_dict


@dataclass(frozen=True)
class Row:
    """A number of each job."""

    name: str
    a: int
    b: int

    @property
    def delta(self) -> str:
        return f"{self.b - self.a:+,}" if self.a != self.b else "="


def rows_of(found: Comparison) -> Iterator[Row]:
    """Statuses, finish reasons, error codes and tokens, over the requests that both jobs have."""
    a, b = found.tally_a, found.tally_b
    yield from _counted("", a.statuses, b.statuses)
    yield from _counted("finish ", a.finish_reasons, b.finish_reasons)
    yield from _counted("error ", a.error_codes, b.error_codes)
    yield Row("prompt tokens", a.prompt_tokens, b.prompt_tokens)
    yield Row("completion tokens", a.completion_tokens, b.completion_tokens)


def _counted(prefix: str, a: Counter[str], b: Counter[str]) -> Iterator[Row]:
    for name in sorted(a.keys() | b.keys(), key=lambda name: (-a[name] - b[name], name)):
        yield Row(prefix + name, a[name], b[name])


SCORE_TITLES = ("score", "A", "B", "B - A", "of", "now right", "now wrong")


def score_rows(found: Comparison) -> Iterator[tuple[str, ...]]:
    """The cells below `SCORE_TITLES`, in the order of `found.scores`."""
    for match, score in found.scores.items():
        shares = (percent(score.share_a), percent(score.share_b), points(score))
        counts = (f"{score.num_scored:,}", f"{score.num_gained:,}", f"{score.num_lost:,}")
        yield (match.value, *shares, *counts)


def percent(share: Fraction) -> str:
    return f"{float(share * 100):.1f}%"


def points(score: Score) -> str:
    """The difference in percentage points."""
    return f"{float((score.share_b - score.share_a) * 100):+.1f}" if score.share_a != score.share_b else "="


def summary_of(found: Comparison) -> str:
    parts = [f"{found.num_compared:,} requests compared by {found.by}"]
    parts += [f"{n:,} only in {job}" for n, job in ((found.num_only_a, "A"), (found.num_only_b, "B")) if n]
    parts.append(f"{found.num_changed:,} answered otherwise")
    return ", ".join(parts)


def verdict_of(found: Comparison, tolerance: Fraction) -> str:
    if not found.scores:
        return "no request has a reference that could be scored"
    fallen = found.fallen(tolerance)
    if not fallen:
        return f"no score fell by more than {percent(tolerance)}"
    return f"fell by more than {percent(tolerance)}: {', '.join(fallen)}"


def as_dict(found: Comparison, tolerance: Fraction) -> dict[str, Any]:
    """What `compare --json` prints."""
    return {
        "a": _side(found.a, found.tally_a),
        "b": _side(found.b, found.tally_b),
        "by": found.by,
        "num_compared": found.num_compared,
        "num_only_a": found.num_only_a,
        "num_only_b": found.num_only_b,
        "num_changed": found.num_changed,
        "num_flipped": found.num_flipped,
        "scores": {match: _score(score) for match, score in found.scores.items()},
        "tolerance": float(tolerance),
        "fallen": found.fallen(tolerance),
        "notes": notes_of(found),
        "flipped": [_example(one) for one in found.flipped],
        "changed": [_example(one) for one in found.changed],
    }


def _side(job: Job, tally: Tally) -> dict[str, Any]:
    return {
        "job": job_as_dict(job),
        "statuses": tally.statuses,
        "finish_reasons": tally.finish_reasons,
        "error_codes": tally.error_codes,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
    }


def _score(score: Score) -> dict[str, Any]:
    return {**asdict(score), "a": round(float(score.share_a), 6), "b": round(float(score.share_b), 6)}


def _example(example: Example) -> dict[str, Any]:
    return {
        "custom_id": example.custom_id,
        "index_a": example.index_a,
        "index_b": example.index_b,
        "prompt": example.prompt,
        "reference": example.reference,
        "status_a": example.status_a,
        "status_b": example.status_b,
        "response_a": example.answer_a,
        "response_b": example.answer_b,
        "flips": {match: "gained" if up else "lost" for match, up in example.flips.items()},
        "diff": diff_lines(example),
    }
