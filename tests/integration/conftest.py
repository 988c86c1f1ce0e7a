"""A home folder with `promptmill` processes in it; each test's processes end with the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Cli, MakeCli, Redis

# Small enough that a test sees recovery within seconds, large enough for two slow cores.
FAST = {
    "engine": "echo",
    "model": "smollm2-135m-instruct",
    "lease_s": 6,
    "heartbeat_s": 0.5,
    "sweep_s": 0.5,
    "flush_s": 0.2,
    "chunk_num_requests": 8,
    "engine_num_seqs": 8,
}


@pytest.fixture
def make_cli(home: Path) -> Iterator[MakeCli]:
    """`promptmill` with the echo engine and quick settings; more settings as keywords."""
    made: list[Cli] = []

    def make(**settings: object) -> Cli:
        cli = Cli(home, **{**FAST, **settings})
        made.append(cli)
        return cli

    yield make
    for cli in made:
        cli.stop_all()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    server.start()
    yield server
    server.kill()
