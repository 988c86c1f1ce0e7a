"""What a request costs beside its generation: the echo engine without latency, Postgres, Redis, two worker processes.

Absolute figures, since there is no raw part to hold them against: requests a second from before the submit to the
job's end, and the CPU time of everything that runs for a request, by process: the submit, the workers, Postgres and
Redis.

Sampled requests; and greedy ones, of which the workers note what is asked, so that none is generated twice.
"""

import argparse
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.installation import Plant, installation, wait_until
from benchmarks.row import Row

_NUM_WORKERS = 2
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Run:
    """One job: its time in all, and the CPU seconds of each kind of process meanwhile."""

    num_requests: int
    took_s: float
    cpu_s: dict[str, float]

    @property
    def requests_per_s(self) -> float:
        return self.num_requests / self.took_s

    @property
    def cpu_us(self) -> float:
        return sum(self.cpu_s.values()) / self.num_requests * 1e6

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {s / self.num_requests * 1e6:.0f}" for name, s in self.cpu_s.items())
        return f"{self.requests_per_s:,.0f} requests/s, {self.cpu_us:.0f} us of CPU a request ({parts})"


def cpu_s(pid: int) -> float:
    """User and system time of a process and of all its descendants that it has reaped or that live."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(stat.parent.name) == pid:
                total += sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_S
            elif int(fields[1]) == pid:
                total += cpu_s(int(stat.parent.name))
    return total


def run(plant: Plant, servers: dict[str, int], num_requests: int, temperature: float = 0.7) -> Run:
    """Submit and run one job on workers that are ready; `servers` are the process ids of Postgres and Redis."""
    path = plant.write(num_requests)
    pids = {**servers, **{f"worker {n}": pid for n, pid in enumerate(plant.worker_pids())}}
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    own, began = time.process_time(), time.monotonic()
    job_id = plant.submit_file(path, sampling={"temperature": temperature})
    wait_until(lambda: plant.job(job_id).state.is_final, "the job is over", 600)
    took_s, own_s = time.monotonic() - began, time.process_time() - own
    spent = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
    by_kind = {
        "submit": own_s,
        "workers": sum(spent[name] for name in spent if name not in servers),
        **{name: spent[name] for name in servers},
    }
    plant.wait_sound(job_id)
    return Run(num_requests, took_s, by_kind)


def measure(*, quick: bool) -> list[Row]:
    num_requests, num_runs = (20_000, 1) if quick else (100_000, 3)
    runs, greedy = _runs(num_requests, num_runs)
    return [
        Row("control plane, requests/s", "requests/s", [run.requests_per_s for run in runs], reach=8_000),
        Row(
            "control plane, CPU a request", "us", [run.cpu_us for run in runs], reach=250, is_less_better=True
        ),
        Row("control plane, greedy, requests/s", "requests/s", [run.requests_per_s for run in greedy]),
        Row(
            "control plane, greedy, CPU a request",
            "us",
            [run.cpu_us for run in greedy],
            reach=250,
            is_less_better=True,
        ),
    ]


def _runs(num_requests: int, num_runs: int) -> tuple[list[Run], list[Run]]:
    """Of sampled requests and of greedy ones, in turn."""
    with installation(echo_latency_s=0) as (plant, servers):
        for worker in [plant.start_worker(is_ready=False) for _ in range(_NUM_WORKERS)]:
            worker.wait_ready()
        run(plant, servers, num_requests // 10)  # warms up
        runs: tuple[list[Run], list[Run]] = ([], [])
        for _ in range(num_runs):
            for kind, name, temperature in zip(runs, ("sampled", "greedy"), (0.7, 0.0), strict=True):
                kind.append(run(plant, servers, num_requests, temperature))
                print(f"  control plane, {name}: {kind[-1]}", flush=True)
        return runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control_plane", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    _runs(arguments.requests, arguments.runs)
