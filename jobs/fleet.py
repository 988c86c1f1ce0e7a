"""The workers, as `promptmill workers` shows them."""

from collections.abc import Sequence
from typing import Any

from db.queries import Worker
from db.states import ALIVE_STATES
from jobs.shown.table import print_table, span

_TITLES = ("WORKER", "STATE", "CARD", "ENGINE", "WHERE", "CHUNKS", "DONE", "TOKENS/S", "HEARTBEAT")


def worker_as_dict(worker: Worker) -> dict[str, Any]:
    """What `workers --json` prints; the rate is null where there is none: before the engine is loaded, and after the
    worker's end."""
    rate = _rate(worker)
    return {
        "id": worker.id,
        "state": worker.state,
        "card": worker.card_name,
        "engine": worker.engine,
        "host": worker.host,
        "pid": worker.pid,
        "num_chunks": worker.num_chunks,
        "num_results": worker.num_results,
        "completion_tokens": worker.completion_tokens,
        "completion_tokens_per_s": None if rate is None else round(rate, 3),
        "heartbeat_age_s": round(worker.heartbeat_age_s, 3),
    }


def print_workers(workers: Sequence[Worker]) -> None:
    rows = [
        (
            worker.id,
            worker.state.value,
            worker.card_name,
            worker.engine,
            f"{worker.host}:{worker.pid}",
            f"{worker.num_chunks:,}",
            f"{worker.num_results:,}",
            "" if (rate := _rate(worker)) is None else f"{rate:,.0f}",
            f"{span(worker.heartbeat_age_s)} ago",
        )
        for worker in workers
    ]
    print_table(_TITLES, rows, numbers=("CHUNKS", "DONE", "TOKENS/S"), flexible=("WHERE", "CARD"))


def _rate(worker: Worker) -> float | None:
    return worker.completion_tokens_per_s if worker.state in ALIVE_STATES else None
