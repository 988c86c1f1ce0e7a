"""`python -m benchmarks.chaos`: one long job while everything is broken in turn, against the same job left in peace.

Over Postgres and Redis, and over SQLite and the private Redis. Faults and pauses follow from the seed. Prints a
timeline, and exits with 1 when a request is lost or doubled, or an answer is wrong.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from plant import FAST, Plant
from servers import Postgres, Redis, wait_until
from sqlalchemy import func, select

from benchmarks.chaos_faults import Faults, Hit
from db.errors import PromptmillError
from db.tables import chunks
from jobs.export import export
from jobs.verify import verify

_NUM_WORKERS = 3
_MIN_FAULTS = 12
_SETTINGS = {
    **FAST,
    "lease_s": 8.0,
    "heartbeat_s": 1,
    "sweep_s": 1,
    "flush_s": 0.5,
    "chunk_num_requests": 32,
    "engine_num_seqs": 64,
    # so long that every fault finds the job running
    "echo_latency_s": 1.4,
}
_PAUSES_S = (1.0, 3.0)
_RECOVERY_TIMEOUT_S = 90.0
# a submit's lease, and a sweep
_SWEPT_TIMEOUT_S = 120.0


def _break_everything(plant: Plant, faults: Faults, chance: random.Random, job_id: str) -> int:
    """Inject faults until the job is over; how many there were."""
    began, num_faults = time.monotonic(), 0
    for fault in faults.schedule():
        time.sleep(chance.uniform(*_PAUSES_S))
        if plant.job(job_id).state.is_final:
            break
        hit = faults.strike(fault)
        num_faults += 1
        done = plant.job(job_id).counts.num_closed
        what = fault.__name__.replace("_", " ")
        wait_until(partial(_is_over, plant, job_id, hit, done), f"recovery: {what}", _RECOVERY_TIMEOUT_S)
        at_s, took_s = faults.struck_at - began, time.monotonic() - faults.struck_at
        print(f"  {at_s:6.1f} s  {what:46} recovered after {took_s:5.1f} s", flush=True)
    wait_until(lambda: plant.job(job_id).state.is_final, "the job is over", 900)
    for poisoned in faults.poisoned:
        outcomes = plant.wait_sound(poisoned)
        if [outcome.error_code for outcome in outcomes] != [None, None, "engine_crash", None]:
            raise AssertionError("the poison's neighbours failed, or the poison did not")
    wait_until(faults.is_swept, "nothing is left of the submit that was killed", _SWEPT_TIMEOUT_S)
    return num_faults


def _is_over(plant: Plant, job_id: str, hit: Hit, num_done: int) -> bool:
    with suppress(PromptmillError):
        job = plant.job(job_id)
        if hit:
            return job.state.is_final or plant.is_recovered(hit)
        return job.state.is_final or job.counts.num_closed > num_done
    return False


def _elapsed_s(plant: Plant, job_id: str) -> float:
    job = plant.job(job_id)
    return (job.finished_at or 0) - (job.started_at or 0)


def _ideal_s(plant: Plant, num_requests: int) -> float:
    """The same job with nothing broken."""
    for worker in [plant.start_worker(is_ready=False) for _ in range(_NUM_WORKERS)]:
        worker.wait_ready()
    job_id = plant.submit(num_requests)
    plant.wait_sound(job_id, 600)
    return _elapsed_s(plant, job_id)


def _judge(plant: Plant, job_id: str, num_requests: int) -> tuple[int, int, int]:
    """Requests lost, doubled and wrongly answered in what a user gets; the invariants are verified on the way."""
    plant.wait_sound(job_id)
    output = plant.home / "out.jsonl"
    export(plant.database, job_id, str(output))
    verify(plant.database, job_id, output_path=str(output))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    indices = [line["index"] for line in lines]
    num_wrong = sum(line["result"] != {"response": f"say {line['index']}"} for line in lines)
    return num_requests - len(set(indices)), len(indices) - len(set(indices)), num_wrong


def _num_chunk_attempts(plant: Plant) -> int:
    again = select(func.sum(chunks.c.attempt - 1)).where(chunks.c.attempt > 1)
    with plant.database.read() as tx:
        return int(tx.execute(again).scalar_one() or 0)


def _half(name: str, num_requests: int, seed: int, folder: Path) -> bool:
    """Run one kind of installation through it; whether it kept its promise."""
    postgres = Postgres(folder / "pg") if name == "Postgres + Redis" else None
    shared = Redis(folder)
    if postgres is not None:
        postgres.start()
        shared.start()

    def make_plant(kind: str) -> Plant:
        home = folder / kind
        home.mkdir()
        urls = {"database_url": postgres.create_database(kind), "broker_url": shared.url} if postgres else {}
        return Plant(home, **{**_SETTINGS, **urls})

    try:
        print(f"{name}: {num_requests:,} requests, {_NUM_WORKERS} workers, seed {seed}", flush=True)
        with closing(make_plant("ideal")) as plant:
            ideal_s = _ideal_s(plant, num_requests)
        print(f"  undisturbed: {ideal_s:.1f} s", flush=True)
        with closing(make_plant("chaos")) as plant:
            redis = shared if postgres else Redis(plant.home)
            return _is_kept(plant, redis, postgres, random.Random(seed), num_requests, ideal_s)  # noqa: S311  no secret
    finally:
        if postgres is not None:
            postgres.come_back()
            postgres.stop()
            with suppress(subprocess.SubprocessError):
                shared.kill()


def _is_kept(
    plant: Plant,
    redis: Redis,
    postgres: Postgres | None,
    chance: random.Random,
    num_requests: int,
    ideal_s: float,
) -> bool:
    with closing(Faults(plant, chance, redis, postgres, num_workers=_NUM_WORKERS)) as faults:
        job_id = plant.submit(num_requests)
        num_faults = _break_everything(plant, faults, chance, job_id)
    num_lost, num_doubled, num_wrong = _judge(plant, job_id, num_requests)
    took_s, num_rerun = _elapsed_s(plant, job_id), plant.num_rerun(job_id)
    print(f"  {num_faults} faults: {took_s:.1f} s, {took_s / ideal_s:.2f} of the undisturbed run")
    print(f"  run again: {num_rerun} requests in {_num_chunk_attempts(plant)} further attempts at chunks")
    print(f"  lost = {num_lost}, doubled = {num_doubled}, wrong = {num_wrong}", flush=True)
    if num_faults < _MIN_FAULTS:
        print(f"  too few faults: the job was over before {_MIN_FAULTS} of them; give more --requests")
    return not (num_lost or num_doubled or num_wrong or num_faults < _MIN_FAULTS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["postgres", "sqlite"])
    options = parser.parse_args()
    names = {"postgres": "Postgres + Redis", "sqlite": "SQLite + private Redis"}
    good = True
    for key, name in names.items():
        if options.only in (None, key):
            with tempfile.TemporaryDirectory(prefix="chaos") as folder:
                good &= _half(name, options.requests, options.seed, Path(folder))
    print("passed" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
