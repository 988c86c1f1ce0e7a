"""What a command does when it is told to stop: the first signal raises KeyboardInterrupt, the second is for hurry."""

import atexit
import contextlib
import signal
import threading
from collections.abc import Iterator

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Plain numbers: a handler runs between any two steps of the main thread, and a lock may be held there by that very
# thread.
_num_told = 0
_num_raised = 0
_num_holds = 0


def stop_on_signals() -> None:
    """From here on the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt; later ones make `is_hurried` true.

    Only the first raises: a second exception, in the middle of a stop, would leave chunks leased to a dead worker.
    """
    global _num_told, _num_raised

    def tell(*_: object) -> None:
        global _num_told
        _num_told += 1
        if _num_holds == 0:
            _raise_once()

    _num_told = _num_raised = 0
    _handle(tell)
    # on its way out Python puts the system's handlers back, and those kill
    atexit.register(_handle, signal.SIG_IGN)


def check() -> None:
    """Raise KeyboardInterrupt if this process was told to stop. For loops: Python drops what is raised in a destructor
    or in a weak reference's callback, and a signal may find the main thread there."""
    if _num_told:
        raise KeyboardInterrupt


def is_hurried() -> bool:
    """Whether somebody asked again."""
    return _num_told > 1


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Nothing is raised inside the block, but at its end: for steps that an exception must not cut in two. Popen is
    one: interrupted at the wrong moment it keeps its lock, and waits for itself ever after."""
    global _num_holds
    is_main = threading.current_thread() is threading.main_thread()
    _num_holds += is_main
    try:
        yield
    finally:
        _num_holds -= is_main
    if is_main and _num_holds == 0 and _num_told:
        _raise_once()


def _raise_once() -> None:
    global _num_raised
    if _num_raised == 0:
        _num_raised = 1
        raise KeyboardInterrupt


def _handle(handler: object) -> None:
    for number in _STOP_SIGNALS:
        # the hangup of a terminal, unless nohup took it away, is a stop too
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)  # type: ignore[arg-type]  # a function, or SIG_IGN
