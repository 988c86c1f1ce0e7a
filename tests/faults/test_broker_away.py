"""Redis emptied, restarted or away: tickets are hints, and nothing but time is lost."""

import contextlib
import time
from pathlib import Path

from plant import LONG_LEASE_S, MakePlant
from redis.exceptions import ConnectionError as RedisGoneError
from servers import Redis, wait_until

_AWAY_S = 60.0


def test_an_emptied_redis_costs_nothing(big: MakePlant, redis: Redis) -> None:
    plant = big(lease_s=LONG_LEASE_S)
    plant.start_worker(is_ready=False)
    plant.start_worker()
    job_id = plant.submit(120)
    plant.wait_results(job_id, 8)
    redis.client().flushall()
    second = plant.submit(40)
    redis.client().flushall()
    plant.wait_sound(job_id)
    plant.wait_sound(second)
    assert plant.num_rerun(job_id) == 0


def test_a_redis_that_was_away_for_a_minute_is_used_again(big: MakePlant, redis: Redis) -> None:
    """It comes back empty. Meanwhile chunks go on, a submit is stored, and says that the job waits."""
    plant = big(lease_s=LONG_LEASE_S)
    plant.start_worker()
    first = plant.submit(500)
    plant.wait_results(first, 8)
    redis.kill()
    back_at = time.monotonic() + _AWAY_S
    submitted = plant.cli.run("submit", str(plant.write(20)))
    assert submitted.returncode == 0, submitted.stderr
    assert "the job waits" in submitted.stderr
    second = submitted.stdout.strip()
    num_finished = plant.job(first).counts.num_closed
    plant.wait_results(first, num_finished + 16)
    plant.wait_sound(first)
    # no slot is at work any more that would find another job without a ticket; and time itself is the fault here
    third = plant.submit(20)
    wait_until(lambda: time.monotonic() >= back_at, "a minute is over", _AWAY_S)
    assert plant.job(third).counts.num_closed == 0
    redis.start()
    plant.wait_sound(second, 60)
    plant.wait_sound(third, 60)
    assert plant.num_rerun(first) == plant.num_rerun(second) == 0


def test_a_worker_that_starts_before_redis_waits_for_it(big: MakePlant, redis: Redis) -> None:
    plant = big()
    redis.kill()
    job_id = plant.submit(20)
    worker = plant.start_worker()
    wait_until(lambda: "broker" in worker.log, "it says what it waits for")
    assert "Traceback" not in worker.log, worker.log
    redis.start()
    plant.wait_sound(job_id, 40)


def test_a_killed_private_redis_is_started_again(small: MakePlant, home: Path) -> None:
    plant = small()
    worker = plant.start_worker()
    first = plant.submit(60)
    plant.wait_results(first, 8)
    server = Redis(home)  # stands in for the worker's own, which listens there
    with contextlib.suppress(RedisGoneError):
        server.client().execute_command("SHUTDOWN", "NOSAVE")
    wait_until(lambda: server.is_answering(), "another one answers", 10)
    second = plant.submit(20)
    plant.wait_sound(first)
    plant.wait_sound(second)
    assert worker.supervisor.poll() is None
