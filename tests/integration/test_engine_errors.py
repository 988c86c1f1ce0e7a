"""An engine that cannot be started, and two workers of one home: what is said of it, and what to do."""

import json
import os
import re
from pathlib import Path

import pytest
from servers import MakeCli, wait_until

_MODEL = "smollm2-135m-instruct"


@pytest.fixture
def requests(tmp_path: Path) -> str:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"prompt": "x"}) + "\n")
    return str(path)


@pytest.fixture
def _without_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vllm that cannot be imported, as where it is not installed."""
    package = tmp_path / "packages" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError(\"No module named 'vllm'\")\n")
    paths = [str(package.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.mark.usefixtures("_without_vllm")
def test_without_vllm_run_and_worker_say_how_to_install_it(
    make_cli: MakeCli, requests: str, home: Path
) -> None:
    cli = make_cli(engine="vllm")
    why = "the engine cannot be started: vLLM is not installed (No module named 'vllm');"
    how = " run: pip install 'promptmill[gpu]'"
    done = cli.run("run", requests, "--no-check-tokens")
    assert (done.returncode, done.stdout) == (1, "")
    log = next((home / "logs").iterdir())
    assert done.stderr.splitlines()[-1] == (
        f"error: {why}{how}. The same command goes on where it stood. The worker's log: {log}"
    )
    done = cli.run("worker")
    assert done.returncode == 70
    assert done.stderr.splitlines()[-1].endswith(f" CRITICAL promptmill: {why}{how}")
    assert "Traceback" not in done.stderr


def test_a_folder_without_a_model_is_named(make_cli: MakeCli, requests: str, home: Path) -> None:
    weights = home / "weights" / _MODEL
    weights.mkdir(parents=True)
    done = make_cli(engine="vllm").run("run", requests, "--no-check-tokens")
    assert done.returncode == 1
    assert re.search(
        rf"^error: the engine cannot be started: vLLM cannot load {weights}: no model is there \(config\.json\);"
        r" put one there\. The same command goes on where it stood\. The worker's log: .+\.log$",
        done.stderr,
        re.MULTILINE,
    )


def test_a_log_that_cannot_be_written_is_said(make_cli: MakeCli, requests: str, home: Path) -> None:
    (home / "logs").write_text("a file")
    done = make_cli().run("run", requests)
    assert done.returncode == 1
    assert re.search(
        rf"^error: cannot write the worker's log {home}/logs/job_\w+\.log: Not a directory; a part of the path",
        done.stderr,
        re.MULTILINE,
    )


def test_two_workers_of_one_home_share_its_redis(make_cli: MakeCli, requests: str) -> None:
    cli = make_cli()
    workers = [cli.start("worker") for _ in range(2)]
    wait_until(
        lambda: json.loads(cli.run("check", "--json").stdout)[5]["detail"] == "2 alive", "both are alive"
    )
    assert cli.run("submit", requests).returncode == 0
    assert cli.run("wait", "last").returncode == 0
    for worker in workers:
        worker.terminate()
        _, said = worker.communicate(timeout=60)
        assert worker.returncode == 0, said
