"""`promptmill` in a real terminal of a given size: what it draws, and what stands there in the end."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping

from servers import Cli

_PATIENCE_S = 60.0


class Terminal:
    """A command whose stdin, stdout and stderr are one terminal, which also its Ctrl-C comes from."""

    def __init__(
        self,
        cli: Cli,
        *arguments: str,
        columns: int = 80,
        lines: int = 24,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.text = ""
        self._ours, theirs = pty.openpty()
        self.resize(columns, lines, is_told=False)
        # what is said of another terminal, as pytest's workers do, would go before what this one is asked for
        sized = {name: value for name, value in cli.environment.items() if name not in ("COLUMNS", "LINES")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cli", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**sized, "TERM": "xterm-256color", **(environment or {})},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    def resize(self, columns: int, lines: int, *, is_told: bool = True) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        if is_told:
            self._process.send_signal(signal.SIGWINCH)

    def press_ctrl_c(self) -> None:
        os.write(self._ours, b"\x03")

    def wait_for(self, pattern: str) -> None:
        """Read until `pattern` is there, after what was there before this call."""
        seen = len(self.text)
        deadline = time.monotonic() + _PATIENCE_S
        while not re.search(pattern, plain(self.text[seen:])):
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{self.text[seen:]}"
            assert self._read(), f"ended without {pattern!r}:\n{self.text}"

    def end(self) -> int:
        """Read to the end; the exit code."""
        try:
            deadline = time.monotonic() + _PATIENCE_S
            while self._read():
                assert time.monotonic() < deadline, f"it does not end:\n{self.text}"
            return self._process.wait(_PATIENCE_S)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._ours)

    def _read(self) -> bool:
        """Whether there may be more."""
        if not select.select([self._ours], [], [], 1.0)[0]:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # nobody writes any more
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)


def plain(text: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def standing(text: str) -> list[str]:
    """The lines that stand in the end. Only colours and "up so many lines and erase" may be in `text`, and the echo of
    Ctrl-C, which ends no line."""
    found: list[str] = []
    for part in re.split(r"(\x1b\[\d+F\x1b\[J)", plain(text).replace("^C", "")):
        if up := re.fullmatch(r"\x1b\[(\d+)F\x1b\[J", part):
            del found[-int(up[1]) :]
        else:
            assert "\x1b" not in part, repr(part)
            found += part.replace("\r\n", "\n").splitlines()
    return found
