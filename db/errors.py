"""Every error promptmill raises on purpose.

PromptmillError
├── SettingsError          a setting is unknown, malformed or contradicts another
├── CardError              a model card cannot be read, or is not one
├── InputError             the input file cannot be read, or has lines the card refuses
├── NotFoundError          no such job, card, schedule or request
├── WrongStateError        it is there, but not in a state that allows this
├── LeaseLostError         the chunk's lease has passed to somebody else: write nothing
├── UnsoundError           `promptmill verify` found an invariant that does not hold
├── UnavailableError       a service is away; the same call may succeed later
│   ├── DatabaseUnavailableError
│   └── BrokerUnavailableError
├── OutputError            a file cannot be written
└── EngineError            the engine cannot be started, or has died

A message says what, where, and what to do next. None of them holds a prompt, a completion or a secret.
"""

import errno
import os

_NEXT_STEPS = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file: check the path",
    errno.EISDIR: "give a file",
    errno.EACCES: "ls -ld shows who may do so",
    errno.EPERM: "ls -ld shows who may do so",
    errno.EROFS: "give a place that can be written to",
    errno.ENOSPC: "make room: df -h shows what is full",
    errno.EDQUOT: "make room: your quota is used up",
    errno.EFBIG: "raise the limit on a file's size: ulimit -f shows it",
    errno.EMFILE: "raise the limit on open files: ulimit -n shows it",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "a symbolic link leads back to itself: check the path",
}


def why(error: OSError, next_step: str | None = None) -> str:
    """The system's reason, and what to do: `next_step`, or what helps against that reason."""
    # a folder is made where a file stands
    number = errno.ENOTDIR if error.errno == errno.EEXIST else error.errno or 0
    reason = os.strerror(number) if number else str(error)
    step = next_step or _NEXT_STEPS.get(number)
    return f"{reason}; {step}" if step else reason


class PromptmillError(Exception):
    """The root: whatever is not one of these is a bug."""


class SettingsError(PromptmillError):
    pass


class CardError(PromptmillError):
    pass


class InputError(PromptmillError):
    pass


class NotFoundError(PromptmillError):
    pass


def no_such_job(said: str) -> NotFoundError:
    name = said if said.strip() else repr(said)
    return NotFoundError(f"there is no job {name}; promptmill list shows the jobs there are")


class WrongStateError(PromptmillError):
    """`current` is the state found, `expected` those the arrow starts from; `next_step` is what to do instead."""

    def __init__(self, what: str, current: str, expected: frozenset[str], next_step: str = "") -> None:
        needs = f"{what} is {current}; this needs it to be {' or '.join(sorted(expected))}"
        super().__init__(f"{needs}; {next_step}" if next_step else needs)
        self.current = current
        self.expected = expected


def job_in_wrong_state(job_id: str, current: str, expected: frozenset[str]) -> WrongStateError:
    step = f"promptmill wait {job_id} waits for its end, promptmill cancel {job_id} stops it"
    return WrongStateError(
        f"job {job_id}", current, expected, step if "completed" in expected else "it is over: nothing to do"
    )


class LeaseLostError(PromptmillError):
    pass


class UnsoundError(PromptmillError):
    pass


class UnavailableError(PromptmillError):
    pass


class DatabaseUnavailableError(UnavailableError):
    pass


class BrokerUnavailableError(UnavailableError):
    pass


class OutputError(PromptmillError):
    pass


class EngineError(PromptmillError):
    pass
