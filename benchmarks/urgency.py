"""An urgent job behind a million queued requests: how soon its first chunk is claimed, and what goes before its last.

Ten requests in five chunks, of higher priority, while two workers with four slots each work on a big job. The echo
engine takes half a second over a request, so that a slot is free every few hundredths of a second; on a GPU a slot is
free as often as a chunk ends there. The time is the database's own, from the moment the job is visible.
"""

import time

from sqlalchemy import func, select

from benchmarks.installation import Plant, installation
from benchmarks.row import Row
from db.tables import chunks, now_s
from jobs.cards import find_card
from jobs.submit import SubmitOptions, submit

_NUM_WORKERS = 2
_LATENCY_S = 0.5


def measure(*, quick: bool) -> list[Row]:
    num_queued, num_runs = (50_000, 3) if quick else (1_000_000, 5)
    with installation(echo_latency_s=_LATENCY_S) as (plant, _):
        big = plant.submit(num_queued)
        for worker in [plant.start_worker(is_ready=False) for _ in range(_NUM_WORKERS)]:
            worker.wait_ready()
        plant.wait_results(big)
        runs = [_run(plant, big) for _ in range(num_runs)]
    queued = f"{num_queued:,} queued"
    return [
        Row(
            f"urgent job, {queued}: first claim",
            "s",
            [run[0] for run in runs],
            reach=1.0,
            is_less_better=True,
        ),
        Row(
            f"urgent job, {queued}: chunks claimed before its last",
            "chunks of the other",
            [float(run[1]) for run in runs],
            reach=0,
            is_less_better=True,
        ),
    ]


def _run(plant: Plant, big: str) -> tuple[float, int]:
    path = plant.write(10)
    # its own chunks are small: with the usual size it would have one
    settings = plant.settings.model_copy(update={"chunk_num_requests": 2})
    card = find_card(plant.home, plant.settings.model)
    urgent = submit(plant.database, settings, card, str(path), SubmitOptions(priority=10)).job.id
    with plant.database.read() as tx:
        visible_at = tx.execute(select(now_s())).scalar_one()
    plant.wait_sound(urgent)
    with plant.database.read() as tx:
        of_urgent = select(func.min(chunks.c.started_at), func.max(chunks.c.started_at))
        first_at, last_at = tx.execute(of_urgent.where(chunks.c.job_id == urgent)).one()
        between = chunks.c.started_at.between(visible_at, last_at)
        of_big = select(func.count()).select_from(chunks).where(chunks.c.job_id == big, between)
        num_other = tx.execute(of_big).scalar_one()
    time.sleep(_LATENCY_S)
    return max(0.0, first_at - visible_at), num_other
