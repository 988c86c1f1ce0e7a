"""Requests that kill the engine or the whole worker: they fail alone, at the price of a few restarts."""

import pytest
from plant import MakePlant, Plant
from sqlalchemy import select

from db import queries
from db.outcomes import Outcome
from db.states import ResultStatus
from db.tables import results

_NUM_NEIGHBOURS = 60
_MAX_WORKERS = 6


def _prompts(*poison: str) -> list[str]:
    good = [f"say {number}" for number in range(_NUM_NEIGHBOURS)]
    return good[:30] + list(poison) + good[30:]


def _assert_only_poison_failed(outcomes: list[Outcome], num_poison: int, code: str) -> None:
    poison = range(30, 30 + num_poison)
    assert {outcome.index: outcome.error_code for outcome in outcomes if outcome.error_code} == dict.fromkeys(
        poison, code
    )
    assert sum(outcome.status is ResultStatus.SUCCEEDED for outcome in outcomes) == _NUM_NEIGHBOURS


@pytest.mark.parametrize("poison", ["!kill", "!die"])
def test_under_a_restarting_worker(make_plant: MakePlant, poison: str) -> None:
    plant = make_plant(chunk_num_requests=64, echo_latency_s=0.02)
    job_id = plant.submit(_prompts(poison))
    plant.start_worker("--restart-engine", is_ready=False)
    _assert_only_poison_failed(plant.wait_sound(job_id), 1, "engine_crash")
    assert plant.num_workers() <= _MAX_WORKERS


@pytest.mark.parametrize("poison", ["!kill", "!die"])
def test_under_run(small: MakePlant, poison: str) -> None:
    plant = small(chunk_num_requests=64, echo_latency_s=0.02)
    done = plant.cli.run("run", str(plant.write(_prompts(poison))), "-o", str(plant.home / "out.jsonl"))
    assert done.returncode == 0, done.stderr
    _assert_only_poison_failed(plant.wait_sound(_only_job(plant)), 1, "engine_crash")
    assert plant.num_workers() <= _MAX_WORKERS


@pytest.mark.parametrize(("poison", "code"), [("!die", 70), ("!kill", 137)])
def test_a_worker_that_nobody_restarts_says_how_it_ended(small: MakePlant, poison: str, code: int) -> None:
    """For systemd, Docker and Kubernetes; what it held waits for the next worker at once, whatever the lease."""
    plant = small(chunk_num_requests=64, lease_s=120, heartbeat_s=1)
    job_id = plant.submit(_prompts(poison))
    worker = plant.start_worker(is_ready=False)
    assert worker.supervisor.wait(30) == code
    assert plant.job(job_id).counts.running == 0
    plant.start_worker("--restart-engine", is_ready=False)
    _assert_only_poison_failed(plant.wait_sound(job_id), 1, "engine_crash")


def test_two_of_them_in_one_chunk(small: MakePlant) -> None:
    plant = small(chunk_num_requests=64, echo_latency_s=0.02)
    job_id = plant.submit(_prompts("!kill", "!die"))
    plant.start_worker("--restart-engine", is_ready=False)
    _assert_only_poison_failed(plant.wait_sound(job_id), 2, "engine_crash")
    assert plant.num_workers() <= _MAX_WORKERS + 2


def test_it_does_not_hold_up_another_job_for_ever(small: MakePlant) -> None:
    plant = small(chunk_num_requests=64, echo_latency_s=0.02)
    bad = plant.submit(_prompts("!kill"))
    good = plant.submit(100)
    plant.start_worker("--restart-engine", is_ready=False)
    assert all(outcome.error_code is None for outcome in plant.wait_sound(good))
    _assert_only_poison_failed(plant.wait_sound(bad), 1, "engine_crash")


def test_a_refused_request_fails_alone_and_a_flaky_one_succeeds(small: MakePlant) -> None:
    plant = small(chunk_num_requests=64, echo_latency_s=0.02)
    job_id = plant.submit(_prompts("!refuse", "!flaky"))
    plant.start_worker()
    outcomes = plant.wait_sound(job_id)
    assert {o.index: o.error_code for o in outcomes if o.error_code} == {30: "engine_error"}
    assert outcomes[31].status is ResultStatus.SUCCEEDED
    with plant.database.read() as tx:
        attempts = dict(tx.execute(select(results.c.index, results.c.attempt)).tuples().all())
    assert attempts.pop(31) == 3
    assert set(attempts.values()) == {1}
    assert plant.num_workers() == 1


def _only_job(plant: Plant) -> str:
    return queries.list_jobs(plant.database, 1)[0].id
