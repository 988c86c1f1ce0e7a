"""Another machine whose network can be cut: a network namespace with its own loopback stands in for it.

Inside the namespace a relay listens on TCP and passes everything to the servers' Unix sockets, which do not care
about namespaces. Taking the loopback down drops every packet without a word, as a pulled cable does.
"""

import shutil
import subprocess
import sys
from typing import Any

from relay import __file__ as relay_path
from servers import Postgres, Redis
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

    @staticmethod
    def is_permitted() -> bool:
        """Whether network namespaces may be made here; that needs root."""
        if not all(shutil.which(name) for name in ("unshare", "nsenter", "ip")):
            return False
        probe = ["unshare", "--net", "ip", "link", "set", "lo", "up"]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0

    @property
    def enter(self) -> list[str]:
        """The command that runs another in here."""
        return ["nsenter", f"--net=/proc/{self._relay.pid}/ns/net"]

    def urls(self, database_url: str) -> dict[str, Any]:
        """The settings of a worker in here that works on this database."""
        near = make_url(database_url)
        far = near.set(username="postgres", host="127.0.0.1", port=_POSTGRES_PORT, query={})
        return {
            "database_url": far.render_as_string(hide_password=False),
            "broker_url": f"redis://127.0.0.1:{_REDIS_PORT}/0",
        }

    def cut(self) -> None:
        subprocess.run([*self.enter, "ip", "link", "set", "lo", "down"], check=True)

    def mend(self) -> None:
        subprocess.run([*self.enter, "ip", "link", "set", "lo", "up"], check=True)

    def close(self) -> None:
        self._relay.kill()
        self._relay.communicate()
