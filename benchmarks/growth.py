"""What claims, status, list, cancel and finish cost with ten thousand to ten million requests queued.

Against themselves at the smallest size, in alternating rounds, on Postgres and on SQLite: each must stay within 1.5.
Half of the requests are in five big jobs, half in jobs of a thousand, so both a long job and many jobs are seen. The
rows are made by the database itself. `python -m benchmarks.growth --sizes 10000 1000000`.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

from sqlalchemy import text

from benchmarks.installation import NUMBERS, postgres_in_a_folder
from benchmarks.row import Row
from db import leases, queries, transitions
from db.database import Database
from db.leases import NewResult, Record
from db.transitions import Lease
from db.upgrade import upgrade
from jobs.control import cancel

_SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
_QUICK_SIZES = (10_000, 300_000)
_CHUNK = 64
_NUM_BIG_JOBS = 5
_SMALL_JOB = 1_000
_NUM_ROUNDS = _NUM_BIG_JOBS
_NUM_CALLS = 60
_CARD = "tiny"
_LEASE_S = 600.0
_REACH = 1.5
# Of so many claimed chunks one is finished; the smallest size has few.
_FINISHED = 6

_Value = TypeVar("_Value")

_JOB = """
INSERT INTO jobs (id, state, card_name, card_sha256, card, input_name, input_sha256, num_requests, created_at)
VALUES (:id, 'queued', 'tiny', 'c', :card, 'in.jsonl', 'i', :num, :created_at)
"""
_REQUESTS = """
INSERT INTO requests (job_id, "index", custom_id, body)
SELECT :id, n, 'request-' || n, '{{"prompt": "Say the number ' || n || ' in ten words."}}' FROM ({numbers}) AS numbers
"""
_CHUNKS = """
INSERT INTO chunks (job_id, first_index, num_requests, state)
SELECT :id, n * :chunk, CASE WHEN (n + 1) * :chunk > :num THEN :num - n * :chunk ELSE :chunk END, 'queued'
FROM ({numbers}) AS numbers
"""


@dataclass
class _Installation:
    """A database with so many requests queued, and the seconds that each call took, by round."""

    database: Database
    num_requests: int
    took_s: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))


def _fill(database: Database, num_requests: int) -> None:
    numbers = NUMBERS[database.is_sqlite]
    big = num_requests // 2 // _NUM_BIG_JOBS
    jobs = [(f"big_{number}", big) for number in range(_NUM_BIG_JOBS)]
    jobs += [(f"small_{number}", _SMALL_JOB) for number in range(num_requests // 2 // _SMALL_JOB)]
    card = "a card's text, about as long as they are: " + "x" * 3_000
    with database.write() as tx:
        for number, (job_id, num) in enumerate(jobs):
            tx.execute(text(_JOB), {"id": job_id, "num": num, "created_at": float(number), "card": card})
            tx.execute(text(_REQUESTS.format(numbers=numbers)), {"id": job_id, "last": num - 1})
            tx.execute(
                text(_CHUNKS.format(numbers=numbers)),
                {"id": job_id, "last": -(-num // _CHUNK) - 1, "chunk": _CHUNK, "num": num},
            )
        transitions.register_worker(tx, "w", _CARD, "echo", "host", 1)
    with database.write() as tx:
        tx.execute(text("ANALYZE"))


def _timed(into: list[float], call: Callable[[], _Value]) -> _Value:
    began = time.perf_counter()
    value = call()
    into.append(time.perf_counter() - began)
    return value


def _round(installation: _Installation, number: int) -> None:
    """Some calls of each kind; one big job more is cancelled at the end."""
    database = installation.database
    took: dict[str, list[float]] = defaultdict(list)
    for call in range(_NUM_CALLS):
        lease = _timed(took["claim"], lambda: leases.claim(database, "w", _CARD, _LEASE_S))
        if lease is None:
            raise RuntimeError("nothing can be claimed")
        if call % _FINISHED:
            leases.release(database, lease)
        else:
            record = _whole(lease)
            _timed(took["finish"], lambda: leases.record(database, [record]))  # noqa: B023  called at once
        _timed(took["status"], lambda: queries.get_job(database, "big_4"))
        _timed(took["list"], lambda: queries.list_jobs(database, 20))
        _timed(took["count claimable"], lambda: queries.count_claimable(database, _CARD, 8))
    _timed(took["cancel"], lambda: cancel(database, f"big_{number}"))
    for name, seconds in took.items():
        installation.took_s[name].append(seconds)


def _whole(lease: Lease) -> Record:
    indexes = range(lease.first_index, lease.first_index + lease.num_requests)
    text = '{"response":"a completion of some words"}'
    return Record(lease, [NewResult(index, text, "stop", 12, 8) for index in indexes], is_last=True)


def _p95(seconds: Sequence[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.95)]


def measure(*, quick: bool, sizes: Sequence[int] = ()) -> list[Row]:
    sizes = sizes or (_QUICK_SIZES if quick else _SIZES)
    with postgres_in_a_folder() as (root, postgres):
        urls = {size: postgres.create_database(f"growth_{size}") for size in sizes}
        rows = _measure("Postgres", urls)
        return rows + _measure("SQLite", {size: f"sqlite:///{root / f'{size}.db'}" for size in sizes})


def _measure(kind: str, urls: dict[int, str]) -> list[Row]:
    installations = []
    for size, url in urls.items():
        began = time.monotonic()
        database = Database(url)
        upgrade(database)
        _fill(database, size)
        installations.append(_Installation(database, size))
        print(f"  {kind}: {size:,} requests made in {time.monotonic() - began:.0f} s", flush=True)
    for number in range(_NUM_ROUNDS):
        for installation in installations:
            _round(installation, number)
    for installation in installations:
        installation.database.close()
    return [
        _row(kind, name, installation, installations[0])
        for name in installations[0].took_s
        for installation in installations[1:]
    ]


def _row(kind: str, name: str, installation: _Installation, smallest: _Installation) -> Row:
    # of claims the slow ones, since a slot stands empty meanwhile; of the others the usual one
    judge = _p95 if name == "claim" else median
    values, raws = (
        [judge(seconds) * 1e3 for seconds in one.took_s[name]] for one in (installation, smallest)
    )
    label = f"{name}{' p95' if name == 'claim' else ''}"
    subject = f"{kind}: {label}, {installation.num_requests:,} queued"
    return Row(subject, "ms, at 10,000", values, raws, reach=_REACH, is_less_better=True)


if __name__ == "__main__":
    from benchmarks.__main__ import print_table

    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(_SIZES))
    print_table(measure(quick=False, sizes=parser.parse_args().sizes))
