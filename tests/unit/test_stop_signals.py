"""Being told to stop: raised once, never in the middle of a step that is held, and hurry is noticed everywhere."""

import subprocess
import sys
import textwrap

import pytest


def _told(body: str) -> str:
    """What a process prints that stops on signals, and tells itself `tell()`."""
    program = f"""
import os, signal
from workers.stop_signals import held, is_hurried, stop_on_signals

def tell():
    os.kill(os.getpid(), signal.SIGTERM)

stop_on_signals()
{textwrap.dedent(body)}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\n", " ").strip()


def test_the_first_raises_and_the_second_is_hurry() -> None:
    said = _told(
        """
        try:
            tell()
        except KeyboardInterrupt:
            print("raised", is_hurried())
        tell()
        print("not again", is_hurried())
        """
    )
    assert said == "raised False not again True"


def test_a_held_step_is_done_whole() -> None:
    said = _told(
        """
        @held()
        def inner():
            tell()
            print("inner")

        try:
            with held():
                inner()
                tell()
                print("outer", is_hurried())
            print("never")
        except KeyboardInterrupt:
            print("raised")
        with held():
            print("once")
        """
    )
    assert said == "inner outer True raised once"


def test_what_is_lost_in_a_destructor_is_raised_by_the_loop() -> None:
    said = _told(
        """
        from workers.stop_signals import check

        class Loses:
            def __del__(self):
                tell()

        check()
        Loses()
        print("lost")
        try:
            check()
        except KeyboardInterrupt:
            print("raised")
        """
    )
    assert said == "lost raised"


def test_an_error_of_a_held_step_goes_before() -> None:
    said = _told(
        """
        try:
            with held():
                tell()
                raise ValueError
        except ValueError:
            print("error")
        """
    )
    assert said == "error"


@pytest.mark.parametrize(("before", "expected"), [("SIG_IGN", "goes on"), ("SIG_DFL", "raised")])
def test_nohup_is_respected(before: str, expected: str) -> None:
    said = _told(
        f"""
        signal.signal(signal.SIGHUP, signal.{before})
        stop_on_signals()
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            print("goes on")
        except KeyboardInterrupt:
            print("raised")
        """
    )
    assert said == expected


def test_a_handler_takes_no_lock_that_the_main_thread_may_hold() -> None:
    """Thousands of signals while the main thread starts and waits for processes: none is lost in it, none hangs it."""
    said = _told(
        """
        import subprocess, threading, time
        is_over = False

        def pester():
            while not is_over:
                tell()
                time.sleep(0.0002)

        try:
            tell()
        except KeyboardInterrupt:
            pass
        thread = threading.Thread(target=pester)
        thread.start()
        for _ in range(20):
            with held():
                process = subprocess.Popen(["true"])
                while process.poll() is None:
                    is_hurried()
        is_over = True
        thread.join()
        print("over", is_hurried())
        """
    )
    assert said == "over True"
