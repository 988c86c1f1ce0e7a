"""Many GPUs on two cores: echo workers with the latency and the batch of a 7B model on an H100, on one Postgres.

Each worker runs 256 requests at once and takes 5 s over each: 51 requests a second, about 13,000 tokens a second at
256 tokens a request, which is what a 7B model in bfloat16 comes to there. What is measured is not the model: whether
every engine stays full while one Postgres and one Redis serve them all, and what that costs them. Prints, for each
number of workers, the requests a second against what the engines could do, and the CPU a request and the connections.
`python -m benchmarks.simulation --workers 8 16 32`.
"""

import argparse
import time
from dataclasses import dataclass

from sqlalchemy import text

from benchmarks.control_plane import cpu_s
from benchmarks.installation import Plant, installation, wait_until
from benchmarks.row import Row

_NUM_SEQS = 256
_LATENCY_S = 5.0
_WORKERS = (8, 16, 32)
_QUICK_WORKERS = (4,)
_WINDOW_S = 30.0


@dataclass(frozen=True)
class Load:
    """A time in which every worker had work: per second, and per request."""

    num_workers: int
    requests_per_s: float
    cpu_us: dict[str, float]
    num_connections: int

    @property
    def ideal_per_s(self) -> float:
        return self.num_workers * _NUM_SEQS / _LATENCY_S

    def __str__(self) -> str:
        cpu = ", ".join(f"{name} {us:.0f}" for name, us in self.cpu_us.items())
        return (
            f"{self.num_workers} workers: {self.requests_per_s:,.0f} of {self.ideal_per_s:,.0f} requests/s,"
            f" us of CPU a request: {cpu}; {self.num_connections} connections"
        )


def measure(*, quick: bool) -> list[Row]:
    loads = _loads(_QUICK_WORKERS if quick else _WORKERS, 10.0 if quick else _WINDOW_S)
    return [
        Row(
            f"{load.num_workers} simulated GPUs, one Postgres",
            "requests/s",
            [load.requests_per_s],
            [load.ideal_per_s],
            reach=0.97,
            note=f"Postgres {load.cpu_us['postgres']:.0f} us of CPU a request",
        )
        for load in loads
    ]


def _loads(counts: tuple[int, ...], window_s: float) -> list[Load]:
    loads = []
    for num_workers in counts:
        with installation(echo_latency_s=_LATENCY_S, engine_num_seqs=_NUM_SEQS) as (plant, servers):
            loads.append(_load(plant, servers, num_workers, window_s))
            print(f"  {loads[-1]}", flush=True)
    return loads


def _load(plant: Plant, servers: dict[str, int], num_workers: int, window_s: float) -> Load:
    per_s = num_workers * _NUM_SEQS / _LATENCY_S
    # full engines from the first worker's start to the window's end
    job_id = plant.submit(int(per_s * (window_s + 4 * _LATENCY_S + num_workers)))
    fleet = [plant.start_worker(is_ready=False) for _ in range(num_workers)]
    for worker in fleet:
        worker.wait_ready(300)
    started = plant.job(job_id).counts.num_closed
    wait_until(
        lambda: plant.job(job_id).counts.num_closed > started + per_s * 2 * _LATENCY_S, "all are busy", 300
    )
    pids = {**servers, **{f"worker {n}": worker.pid for n, worker in enumerate(fleet)}}
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    num_before, began = plant.job(job_id).counts.num_closed, time.monotonic()
    # whole rounds of the engine, which finishes its requests in waves
    time.sleep(window_s)
    num, took_s = plant.job(job_id).counts.num_closed - num_before, time.monotonic() - began
    spent = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
    with plant.database.read() as tx:
        num_connections = tx.execute(
            text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        ).scalar_one()
    return Load(
        num_workers,
        num / took_s,
        {
            "workers": sum(s for name, s in spent.items() if name not in servers) / num * 1e6,
            **{name: spent[name] / num * 1e6 for name in servers},
        },
        num_connections,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=list(_WORKERS))
    parser.add_argument("--seconds", type=float, default=_WINDOW_S)
    arguments = parser.parse_args()
    _loads(tuple(arguments.workers), arguments.seconds)
