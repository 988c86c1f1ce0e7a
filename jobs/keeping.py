"""Keeping a lease while one call takes as long as it takes."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from db.errors import PromptmillError


@contextlib.contextmanager
def kept_alive(renew: Callable[[], None], lease_s: float) -> Iterator[None]:
    """Call `renew`, from a thread, a few times in `lease_s`, until the block ends."""
    is_over = threading.Event()

    def keep() -> None:
        while not is_over.wait(lease_s / 4):
            # whatever is wrong, the block itself meets it too, and says so
            with contextlib.suppress(PromptmillError):
                renew()

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        # no longer, should the database hang: a renewal that comes late finds nothing to renew
        thread.join(1)
