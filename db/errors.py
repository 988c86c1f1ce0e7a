"""Every error promptmill raises on purpose.

PromptmillError
├── SettingsError          a setting is unknown, malformed or contradicts another
├── CardError              a model card cannot be read, or is not one
├── InputError             the input file cannot be read, or has lines the card refuses
├── NotFoundError          no such job, card or request
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


class WrongStateError(PromptmillError):
    """`current` is the state found, `expected` those the arrow starts from."""

    def __init__(self, what: str, current: str, expected: frozenset[str]) -> None:
        super().__init__(f"{what} is {current}; this needs it to be {' or '.join(sorted(expected))}")
        self.current = current
        self.expected = expected


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
