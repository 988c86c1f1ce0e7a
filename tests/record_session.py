"""Types the tutorials' commands into a real terminal and writes what it shows: `python tests/record_session.py`.

Needs tmux, and what `make test` sets up. It writes docs/session.md.
"""

import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from page_shell import NOT_RUN, anywhere, checkout, environment_of
from pages import ID, steps

_ROOT = Path(__file__).parents[1]
_USES = {"datasets": "A data set", "evaluations": "Evaluations every night", "shell": "Jobs from a shell"}
_HEAD = """# A session

What a terminal of {width} columns shows when somebody types the commands of the three tutorials, one after the other: a
capture of tmux, with the small model on a machine without a GPU. `python tests/record_session.py` makes it anew.
"""
_WIDTH, _HEIGHT = 100, 30
_TIMEOUT_S = 600
# a panel that is drawn anew while something runs
_LIVE = re.compile(r"^done +\d.* so far", re.MULTILINE)


class Terminal:
    """A tmux server of its own with one session: a window to type in, and another for each worker."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._tmux = ["tmux", "-f", "/dev/null", "-L", f"pages-{os.getpid()}"]
        self._folder = folder
        self._environment = {**environment, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        # tmux is told of each prompt, so nothing on the screen has to be waited for
        tell = shlex.join([*self._tmux, "wait-for", "-S", "prompt"])
        (folder.parent / "bashrc").write_text(
            f"PS1='$ '\nPROMPT_COMMAND={shlex.quote(tell)}\nunset HISTFILE\n"
        )
        self._shell = f"exec bash --rcfile {folder.parent / 'bashrc'}"
        size = ["-x", str(_WIDTH), "-y", str(_HEIGHT)]
        self._call("new-session", "-d", "-s", "main", *size, "-c", str(folder), self._shell)
        self._call("set-option", "-g", "history-limit", "20000")
        self._call("wait-for", "prompt")

    def _call(self, *words: str, timeout_s: float = _TIMEOUT_S) -> str:
        done = subprocess.run(
            [*self._tmux, *words],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        return done.stdout

    def type(self, command: str) -> Iterator[str]:
        """Type a command; yields the screen until the next prompt."""
        for line in command.split("\n"):
            self._call("send-keys", "-t", "main:0", "-l", line)
            self._call("send-keys", "-t", "main:0", "Enter")
        waiting = subprocess.Popen([*self._tmux, "wait-for", "prompt"], env=self._environment)
        deadline = time.monotonic() + _TIMEOUT_S
        while waiting.poll() is None:
            assert time.monotonic() < deadline, f"not over: {command}"
            yield self._call("capture-pane", "-p", "-t", "main:0")
            time.sleep(0.2)

    def start_beside(self, command: str) -> None:
        """Run a command in a window of its own, with the export of the first."""
        home = f"PROMPTMILL_HOME={self._folder / '.promptmill'}"
        self._call("new-window", "-d", "-e", home, "-c", str(self._folder), f"exec {command} 2> worker.log")

    def read(self) -> str:
        """All that the first window showed."""
        return self._call("capture-pane", "-p", "-S", "-", "-t", "main:0").rstrip()

    def close(self) -> None:
        """End the workers, and then all else."""
        for window, pid in self._panes():
            if window != "0":
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while len(self._panes()) > 1 and time.monotonic() < deadline:
            time.sleep(0.2)
        self._call("kill-server")

    def _panes(self) -> list[tuple[str, int]]:
        """Each window's number and the process in it."""
        lines = self._call("list-panes", "-s", "-F", "#{window_index} #{pane_pid}").splitlines()
        return [(window, int(pid)) for window, pid in map(str.split, lines)]


def record(page: Path) -> str:
    """The screen of one tutorial, and how it was in the middle of each command that shows a panel."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        folder = checkout(Path(made), weights=_ROOT / ".promptmill" / "weights")
        environment = environment_of(folder, os.environ)
        terminal = Terminal(folder, environment)
        try:
            beside: list[str] = []
            ids: dict[str, str] = {}
            for step in steps(page.read_text("utf-8")):
                if step.command.startswith(tuple(NOT_RUN)):
                    continue
                if step.is_worker:
                    terminal.start_beside(step.command)
                    beside.append(f"(in a second window)\n\n$ {step.command}")
                    continue
                num_seen = len(terminal.read())
                command = ID.sub(lambda found: ids.get(found[0], found[0]), step.command)
                seen = [screen for screen in terminal.type(command) if _LIVE.search(screen)]
                if seen:
                    beside.append(f"(while it runs)\n\n{_of_last_command(seen[len(seen) // 2])}")
                new = terminal.read()[num_seen:]
                ids.update(zip(ID.findall("\n".join(step.shown)), ID.findall(new), strict=False))
            return anywhere("\n\n".join([terminal.read(), *beside]), folder)
        finally:
            terminal.close()


def _of_last_command(screen: str) -> str:
    return screen[screen.rindex("$ ") :].rstrip()


def main() -> None:
    parts = [_HEAD.format(width=_WIDTH)]
    for name, title in _USES.items():
        screen = record(_ROOT / "docs" / f"tutorial-{name}.md")
        print(screen, flush=True)
        parts.append(f"## {title}\n\n[The tutorial](tutorial-{name}.md)\n\n```text\n{screen}\n```\n")
    (_ROOT / "docs" / "session.md").write_text("\n".join(parts), "utf-8")


if __name__ == "__main__":
    main()
