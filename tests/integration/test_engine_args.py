"""Engine arguments travel from the command line to the worker process, and not on its command line."""

import json
from pathlib import Path

from servers import MakeCli, wait_until


def _worker_environment(supervisor_pid: int) -> dict[str, str]:
    """Of the worker process under a supervisor, before Celery renames it; its command line under "argv"."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_child = f"PPid:\t{supervisor_pid}\n" in (entry / "status").read_text()
            command = (entry / "cmdline").read_text()
            if is_child and "workers.main" in command:
                pairs = (entry / "environ").read_text().split("\0")
                return {**dict(pair.split("=", 1) for pair in pairs if "=" in pair), "argv": command}
        except OSError:  # one that has just ended
            continue
    return {}


def test_a_worker_gets_them_from_its_environment(make_cli: MakeCli) -> None:
    cli = make_cli(engine_args='{"hf_token": "swordfish", "max_num_seqs": 1}')
    started = cli.start("worker", "--engine-arg", "max_num_seqs=8", "--engine-arg", "dtype=bfloat16")
    environment = wait_until(lambda: _worker_environment(started.pid), "the worker process is there")
    assert json.loads(environment["PROMPTMILL_ENGINE_ARGS"]) == {
        "hf_token": "swordfish",
        "max_num_seqs": 8,
        "dtype": "bfloat16",
    }
    assert "swordfish" not in environment["argv"]
    assert "max_num_seqs" not in environment["argv"]


def test_what_is_no_argument_ends_the_command_before_it_starts_anything(
    make_cli: MakeCli, home: Path
) -> None:
    done = make_cli().run("worker", "--engine-arg", "swordfish")
    assert done.returncode == 2
    assert "key=value" in done.stderr
    assert "swordfish" not in done.stderr
    assert not (home / "promptmill.db").exists()
