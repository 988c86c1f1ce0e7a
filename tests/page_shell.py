"""The commands of a page, run in order in one shell, in a folder that is as a checkout after `make run`.

`promptmill worker` runs beside the others until the page's end, as in a shell of its own.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pages import ID, Outcome, Step

from jobs.settings import PREFIX

_ROOT = Path(__file__).parents[1]
_IS_OVER = "page-step-is-over"
# Commands that no test can run, by how they begin, and why.
NOT_RUN = {
    "make test": "runs what runs this",
    "export PROMPTMILL_DATABASE_URL=": "names a server that is not here",
    "export PROMPTMILL_BROKER_URL=": "names a server that is not here",
    "nvidia-smi": "asks for a GPU",
    "pip install": "changes the environment that runs the tests",
    "hf download": "needs a network",
    "docker ": "needs a Docker engine; deploy/ is read by tests/unit/test_deploy.py",
    "sudo ": "changes the machine; deploy/ is read by tests/unit/test_deploy.py",
    "journalctl": "needs the unit to run",
    "kubectl ": "needs a cluster; deploy/ is read by tests/unit/test_deploy.py",
}
# What is left of `make run` where all is set up.
_MAKEFILE = "run:\n\t.venv/bin/promptmill run examples/requests.jsonl -o out/results.jsonl\n"


def checkout(folder: Path, weights: Path | None = None) -> Path:
    """A folder as a checkout is after its set-up, as far as the pages use it; `weights` is a folder of models."""
    made = folder / "checkout"
    home = made / ".promptmill"
    home.mkdir(parents=True, mode=0o700)
    (home / "promptmill.toml").write_text('model = "smollm2-135m-instruct"\n')
    if weights is not None:
        (home / "weights").symlink_to(weights.resolve())
    shutil.copytree(_ROOT / "examples", made / "examples")
    (made / "Makefile").write_text(_MAKEFILE)
    command = made / ".venv" / "bin" / "promptmill"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nPYTHONPATH={_ROOT} exec {sys.executable} -P -m cli "$@"\n')
    command.chmod(0o700)
    return made


def environment_of(checkout: Path, outer: Mapping[str, str], **settings: object) -> dict[str, str]:
    """For a page's shell: `promptmill` is this code, the user's home an empty folder, settings as given."""
    # `make run` under `make test` would take itself for a part of it, and say which folder it enters
    left_out = (PREFIX, "MAKE", "MFLAGS")
    return {
        **{name: value for name, value in outer.items() if not name.startswith(left_out)},
        "PATH": f"{checkout}/.venv/bin:{Path(sys.executable).parent}:{outer['PATH']}",
        "HOME": str(checkout.parent),
        "TERM": "dumb",
        "TZ": "UTC",
        **{f"{PREFIX}{name.upper()}": str(value) for name, value in settings.items()},
    }


def anywhere(text: str, checkout: Path) -> str:
    """`text` without the paths of this machine."""
    here = {str(checkout): "~/promptmill", sys.prefix: "~/promptmill/.venv", str(checkout.parent): "~"}
    for path, instead in here.items():
        text = text.replace(path, instead)
    return text


class Shell:
    """One bash in a folder, that keeps variables and exports from one command to the next."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--norc"],  # noqa: S607
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._ids: dict[str, str] = {}

    def run(self, step: Step, timeout_s: float) -> tuple[int, list[str]]:
        """The exit code and the output of one command; the ids that the page shows become those of this run."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        command = ID.sub(lambda found: self._ids.get(found[0], found[0]), step.command)
        if step.is_worker:
            # exec, so that $! is its own process
            command = command.replace("promptmill worker", "exec promptmill worker", 1)
            command = f"{{ {command}\n}} >> worker.log 2>&1 & _workers+=($!)"
        # a command that reads stdin would eat those that follow; $? is the command's own for the next one
        whole = f"{{ {command}\n}} < /dev/null\n_code=$?; echo; echo {_IS_OVER} $_code; (exit $_code)\n"
        self._process.stdin.write(whole)
        self._process.stdin.flush()
        lines: list[str] = []
        alarm = threading.Timer(timeout_s, self._kill)
        alarm.start()
        try:
            for line in self._process.stdout:
                if line.startswith(_IS_OVER):
                    return int(line.split()[1]), "\n".join(lines).rstrip().splitlines()
                lines.append(line.rstrip("\n"))
        finally:
            alarm.cancel()
        raise AssertionError(
            f"line {step.line_number}: not over after {timeout_s:g} s: {command}\n" + "\n".join(lines)
        )

    def stop_workers(self) -> None:
        """End them as systemd would; AssertionError if one ended badly, now or before."""
        # 130 and 143: it was too young to have anything to give back
        check = "case $? in 0|130|143) ;; *) echo a worker ended badly; cat worker.log; esac"
        stop = f"for p in ${{_workers[@]}}; do kill -TERM $p; wait $p; {check}; done 2>/dev/null"
        _, said = self.run(Step(0, stop, (), is_read=True), timeout_s=60)
        assert not said, "\n".join(said)

    def learn_ids(self, shown: str, actual: str) -> None:
        self._ids.update(zip(ID.findall(shown), ID.findall(actual), strict=False))

    def close(self) -> None:
        """End whatever still runs in it."""
        self._kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def run_page(
    page: Sequence[Step], folder: Path, environment: Mapping[str, str], timeout_s: float = 60
) -> Iterator[Outcome]:
    """Run a page's commands in `folder`, but for those of NOT_RUN."""
    shell = Shell(folder, environment)
    try:
        for step in page:
            if step.command.startswith(tuple(NOT_RUN)):
                continue
            code, output = shell.run(step, timeout_s)
            shell.learn_ids("\n".join(step.shown), "\n".join(output))
            yield Outcome(step, code, tuple(anywhere(line, folder) for line in output))
        shell.stop_workers()
    finally:
        shell.close()
