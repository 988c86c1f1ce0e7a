"""The real engine: vLLM on a CPU with the small model, that `make test` sets up."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import needs
from servers import Cli, MakeCli

_REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def weights() -> Path:
    path = _REPOSITORY / ".promptmill" / "weights" / "smollm2-135m-instruct"
    if not (path / "config.json").is_file():
        needs("the small model", "run make test, which fetches it")
    if importlib.util.find_spec("vllm") is None:
        needs("vLLM", "run make test, which installs it")
    return path


@pytest.fixture
def make_cli(home: Path, weights: Path) -> Iterator[MakeCli]:
    """`promptmill` with the real engine and the small model."""
    (home / "weights").mkdir(exist_ok=True)
    (home / "weights" / weights.name).symlink_to(weights)
    made: list[Cli] = []

    def make(**settings: object) -> Cli:
        cli = Cli(home, **{"model": weights.name, "cpu_kv_cache_gib": 1, **settings})
        made.append(cli)
        return cli

    yield make
    for cli in made:
        cli.stop_all()
