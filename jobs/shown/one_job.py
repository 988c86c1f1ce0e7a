"""One job in words."""

from db.queries import Job
from jobs.progress import format_time
from jobs.selection import describe_selection
from jobs.shown.text import format_duration, printable


def rate(job: Job) -> str:
    parts = []
    if job.completion_tokens_per_s is not None:
        parts.append(f"{job.completion_tokens_per_s:,.0f} tokens/s")
    if job.eta_s is not None:
        parts.append(f"{format_duration(job.eta_s)} left")
    return ", ".join(parts)


def progress_line(job: Job, *, is_ready: bool = True) -> str:
    """`is_ready`: the engine that is to run it is loaded."""
    counts = job.counts
    done = f"{counts.num_closed:,} of {counts.total:,} requests"
    return f"{state_of(job, is_ready=is_ready)}  {done}  {rate(job)}".rstrip()


def state_of(job: Job, *, is_ready: bool = True) -> str:
    return job.state.value if is_ready or job.state.is_final else "loading the engine"


def _outcomes(job: Job) -> str:
    counts = job.counts
    parts = [
        ("succeeded", counts.succeeded),
        ("failed", counts.failed),
        ("cancelled", counts.cancelled),
    ]
    parts += [
        ("expired", counts.expired),
        ("running", counts.running),
        ("pending", counts.pending),
    ]
    return ", ".join(f"{number:,} {name}" for name, number in parts if number) or "no requests"


def _reused(job: Job) -> str:
    return f"{job.num_reused:,} took the result of another request" if job.num_reused else ""


def describe(job: Job) -> str:
    """A job on a few lines."""
    lines = [
        ("job", job.id + (f"  {printable(job.name)}" if job.name else "")),
        ("model", job.card_name),
        ("labels", ", ".join(f"{key}={value}" for key, value in job.labels.items())),
        ("selection", describe_selection(job.selection) if job.selection else ""),
        ("state", job.state.value),
        ("parent", job.parent_id or ""),
        ("requests", f"{job.counts.total:,}: {_outcomes(job)}"),
        ("reused", _reused(job)),
        (
            "tokens",
            f"{job.prompt_tokens:,} prompt, {job.completion_tokens:,} completion",
        ),
        ("rate", rate(job)),
        ("created", format_time(job.created_at) or ""),
        ("started", format_time(job.started_at) or ""),
        ("finished", format_time(job.finished_at) or ""),
    ]
    return "\n".join(f"{name:10}{value}" for name, value in lines if value)


def summarize(job: Job, output: str | None = None) -> str:
    """A job that is over, in a few lines."""
    took = ""
    if job.elapsed_s is not None:
        took = f" in {format_duration(job.elapsed_s)}"
    lines = [f"{job.id} {job.state.value}{took}: {_outcomes(job)}"]
    if job.num_reused:
        lines.append(f"{_reused(job)}; the others:")
    tokens_per_s = f", {job.completion_tokens_per_s:,.0f} tokens/s" if job.completion_tokens_per_s else ""
    lines.append(
        f"{job.prompt_tokens:,} prompt and {job.completion_tokens:,} completion tokens{tokens_per_s}"
    )
    if job.counts.failed:
        lines.append(f"why they failed: promptmill errors {job.id}")
    if output is not None and output != "-":
        lines.append(f"results: {output}")
    return "\n".join(lines)


def as_pairs(job: Job) -> str:
    """A job as key=value, without blanks in a value, for whoever reads logs."""
    counts = job.counts
    pairs: dict[str, object] = {
        "job": job.id,
        "state": job.state.value,
        "total": counts.total,
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "expired": counts.expired,
        "reused": job.num_reused,
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.completion_tokens,
        "elapsed_s": "" if job.elapsed_s is None else f"{job.elapsed_s:.1f}",
    }
    return " ".join(f"{name}={value}" for name, value in pairs.items())
