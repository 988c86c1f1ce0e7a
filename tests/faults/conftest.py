"""Installations to break, of both kinds, with leases short enough to see recovery within seconds."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from plant import FAST, MakePlant, Plant
from servers import Postgres, Redis

_numbers = itertools.count()


@pytest.fixture
def plants() -> Iterator[list[Plant]]:
    """Those that the test made: their processes end with it."""
    made: list[Plant] = []
    yield made
    for plant in made:
        plant.close()


@pytest.fixture
def small(plants: list[Plant], home: Path) -> MakePlant:
    """SQLite and the private Redis; changed settings as keywords."""

    def make(**settings: object) -> Plant:
        plants.append(Plant(home, **{**FAST, **settings}))
        return plants[-1]

    return make


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def big(plants: list[Plant], home: Path, postgres: Postgres, redis: Redis) -> Iterator[MakePlant]:
    """Postgres and Redis, which a test may crash: Postgres is back afterwards, for the next one."""

    def make(**settings: object) -> Plant:
        url = postgres.create_database(f"plant_{next(_numbers)}", template="template_promptmill")
        plants.append(Plant(home, **{**FAST, "database_url": url, "broker_url": redis.url, **settings}))
        return plants[-1]

    yield make
    postgres.come_back()
    for plant in plants:
        plant.cli.stop_all()


@pytest.fixture(params=["sqlite", "postgres"])
def make_plant(request: pytest.FixtureRequest) -> MakePlant:
    """Each of the two kinds in turn."""
    make: MakePlant = request.getfixturevalue("small" if request.param == "sqlite" else "big")
    return make
