"""A worker on another machine whose network is cut: a network namespace with its own loopback stands in for it.

Inside the namespace a relay listens on TCP and passes everything to the servers' Unix sockets, which do not care
about namespaces. Taking the loopback down drops every packet without a word, as a pulled cable does.
"""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from plant import LEASE_S, RECOVERY_MARGIN_S, MakePlant
from relay import __file__ as relay_path
from servers import Postgres, Redis, wait_until
from sqlalchemy import make_url

_POSTGRES_PORT, _REDIS_PORT = 5432, 6379


class OtherMachine:
    """A network of its own, held open by the relay in it."""

    def __init__(self, postgres: Postgres, redis: Redis) -> None:
        sockets = make_url(postgres.url).query["host"]
        self._relay = subprocess.Popen(
            [
                *("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"),
                *(sys.executable, relay_path),
                *(str(_POSTGRES_PORT), f"{sockets}/.s.PGSQL.5432", str(_REDIS_PORT), str(redis.socket)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._relay.stdout is not None
        assert self._relay.stdout.readline() == "ready\n"

    @property
    def enter(self) -> list[str]:
        """The command that runs another in here."""
        return ["nsenter", f"--net=/proc/{self._relay.pid}/ns/net"]

    def cut(self) -> None:
        subprocess.run([*self.enter, "ip", "link", "set", "lo", "down"], check=True)

    def mend(self) -> None:
        subprocess.run([*self.enter, "ip", "link", "set", "lo", "up"], check=True)

    def close(self) -> None:
        self._relay.kill()
        self._relay.communicate()


@pytest.fixture
def other_machine(postgres: Postgres, redis: Redis) -> Iterator[OtherMachine]:
    allowed = False
    if all(shutil.which(name) for name in ("unshare", "nsenter", "ip")):
        probe = ["unshare", "--net", "ip", "link", "set", "lo", "up"]
        allowed = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    if not allowed:
        pytest.skip(
            "NOT TESTED: a worker that is cut off. Network namespaces are not permitted here (needs root)"
        )
    machine = OtherMachine(postgres, redis)
    yield machine
    machine.close()


def test_a_worker_that_is_cut_off_and_comes_back(big: MakePlant, other_machine: OtherMachine) -> None:
    """Its chunks run elsewhere within the lease; when the cable is back late writes are refused, and it works on."""
    plant = big(echo_latency_s=0.5)
    database = plant.database.url.set(username="postgres", host="127.0.0.1", port=_POSTGRES_PORT, query={})
    far = plant.start_worker(
        under=other_machine.enter,
        database_url=database.render_as_string(hide_password=False),
        broker_url=f"redis://127.0.0.1:{_REDIS_PORT}/0",
    )
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
