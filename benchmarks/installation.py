"""Postgres, Redis and a plant of the tests' own, for the benchmarks that run workers."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plant import Plant
from servers import Postgres, Redis, wait_until

__all__ = ["MODEL", "NUMBERS", "Plant", "installation", "postgres_in_a_folder", "wait_until"]

MODEL = "smollm2-135m-instruct"


# The numbers from 0 to :last, as a database counts them; by whether it is SQLite.
NUMBERS = {
    True: "WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < :last) SELECT n FROM s",
    False: "SELECT n FROM generate_series(0, :last) AS n",
}


@contextmanager
def postgres_in_a_folder() -> Iterator[tuple[Path, Postgres]]:
    """A Postgres that runs, in a folder that holds it and whatever else a benchmark writes."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        root = Path(folder)
        root.chmod(0o755)  # Postgres runs as another user where we are root
        postgres = Postgres(root / "pg")
        postgres.start()
        try:
            yield root, postgres
        finally:
            postgres.stop()


@contextmanager
def installation(**settings: object) -> Iterator[tuple[Plant, dict[str, int]]]:
    """A plant on servers of its own, for the echo engine, and the servers' process ids by their names."""
    with postgres_in_a_folder() as (root, postgres):
        redis = Redis(root)
        redis.start()
        home = root / "home"
        home.mkdir(mode=0o700)
        urls = {"database_url": postgres.create_database("bench"), "broker_url": redis.url}
        plant = Plant(home, **{"engine": "echo", "model": MODEL, **urls, **settings})
        try:
            yield plant, {"postgres": postgres.pid, "redis": redis.pid}
        finally:
            plant.close()
            redis.kill()
