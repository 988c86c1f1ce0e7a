"""SIGKILL under identical requests: whoever waited for the dead one's results generates what it must, and no more."""

from collections import Counter

from plant import LEASE_S, RECOVERY_MARGIN_S, MakePlant
from servers import wait_until
from sqlalchemy import func, select

from db.tables import generations

_NUM_DISTINCT = 40


def test_when_the_worker_that_generates_is_killed_another_does(make_plant: MakePlant) -> None:
    """Slow enough that the first worker holds most notes when it dies, and the second waits for it."""
    plant = make_plant(echo_latency_s=1.5, worker_num_chunks=8)
    first = plant.start_worker()
    second = plant.start_worker(is_ready=False)
    job_id = plant.submit([f"say {number % _NUM_DISTINCT}" for number in range(240)])
    plant.wait_results(job_id, 4)
    second.wait_ready()
    wait_until(lambda: plant.held([second.id]), "the second worker has chunks too")
    before = plant.finished(job_id)
    with plant.recovers_within(LEASE_S + RECOVERY_MARGIN_S, [first.id]):
        first.kill(with_supervisor=True)
    outcomes = plant.wait_sound(job_id)
    assert before.items() <= plant.finished(job_id).items(), "a finished request ran again"
    assert [one.result for one in outcomes] == [
        f'{{"response":"say {number % _NUM_DISTINCT}"}}' for number in range(240)
    ]
    # of each one result was generated that was kept: what the dead worker had in its engine left none
    generated = Counter(one.result for one in outcomes if one.reused_from is None)
    assert generated == Counter({f'{{"response":"say {number}"}}': 1 for number in range(_NUM_DISTINCT)})
    with plant.database.read() as tx:
        assert tx.execute(select(func.count()).select_from(generations)).scalar_one() == _NUM_DISTINCT


def test_an_identical_request_that_kills_its_workers_fails_each_time_and_its_neighbours_succeed(
    small: MakePlant,
) -> None:
    plant = small(max_attempts=1, echo_latency_s=0.02)
    plant.start_worker("--restart-engine", is_ready=False)
    job_id = plant.submit(["fine", "!kill", *["fine"] * 6, "!kill", *["fine"] * 7])
    outcomes = plant.wait_sound(job_id, 120)
    assert [one.error_code for one in outcomes] == [
        "engine_crash" if number in (1, 8) else None for number in range(16)
    ]
