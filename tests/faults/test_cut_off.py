"""A worker on another machine whose network is cut, and comes back."""

import contextlib
from collections.abc import Iterator

import pytest
from other_machine import OtherMachine
from plant import LEASE_S, RECOVERY_MARGIN_S, MakePlant
from servers import Postgres, Redis, wait_until


@pytest.fixture
def other_machine(postgres: Postgres, redis: Redis) -> Iterator[OtherMachine]:
    if not OtherMachine.is_permitted():
        pytest.skip(
            "NOT TESTED: a worker that is cut off. Network namespaces are not permitted here (needs root)"
        )
    machine = OtherMachine(postgres, redis)
    yield machine
    machine.close()


def test_a_worker_that_is_cut_off_and_comes_back(big: MakePlant, other_machine: OtherMachine) -> None:
    """Its chunks run elsewhere within the lease; when the cable is back late writes are refused, and it works on."""
    plant = big(echo_latency_s=0.5)
    database_url = plant.database.url.render_as_string(hide_password=False)
    far = plant.start_worker(under=other_machine.enter, **other_machine.urls(database_url))
    job_id = plant.submit(100)
    plant.wait_results(job_id, 8)
    wait_until(lambda: plant.held([far.id]), "the far worker holds chunks")
    far_id = far.id
    with contextlib.ExitStack() as mending:
        mending.callback(other_machine.mend)
        plant.start_worker(echo_latency_s=0.02, is_ready=False)
        with plant.recovers_within(LEASE_S + RECOVERY_MARGIN_S + 3, [far_id]):
            other_machine.cut()
        plant.wait_sound(job_id, 30)
        finished = plant.finished(job_id)
    wait_until(lambda: "lease lost" in far.log, "the far worker sees that its leases are lost", 60)
    assert plant.finished(job_id) == finished, "it wrote late"
    assert far.supervisor.poll() is None
    wait_until(lambda: plant.has_beaten(far_id), "it is heard of again", 30)
    assert "Traceback" not in far.log
    plant.wait_sound(plant.submit(40))
