"""Handing in a file: checked and stored in one pass, visible only when whole."""

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from db import queries, recovery, submits
from db.database import Database
from db.errors import DatabaseUnavailableError, InputError, NotFoundError
from db.queries import Job
from db.states import InputFormat
from db.submits import NewChunk, NewRequest
from db.transitions import NewJob
from jobs.admission import CheckTokens, open_admission
from jobs.cards import Card
from jobs.dialects.inputs import Inputs
from jobs.dialects.reading import Reading
from jobs.errors_file import open_errors_file
from jobs.keeping import kept_alive
from jobs.progress import counts_as_dict
from jobs.reader import LineLimits, hash_inputs
from jobs.seeds import job_sampling_text
from jobs.selection import Selection
from jobs.settings import Settings
from jobs.validation import CheckedLine, LineChecker, Report, Source

# What is written at once: lines may be long, so their number alone would not bound memory.
_BATCH_REQUESTS = 8_192
_BATCH_CHARS = 16 * 1024 * 1024
# Without i, l, o and u: an id is read aloud and typed.
_ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_LENGTH = 10


class OnInvalid(StrEnum):
    """What becomes of a file with bad lines: refuse it whole, or keep each as a failed request."""

    REJECT = "reject"
    SKIP = "skip"


@dataclass(frozen=True)
class SubmitOptions:
    name: str | None = None
    priority: int = 0
    deadline_s: float | None = None
    on_invalid: OnInvalid = OnInvalid.REJECT
    strict: bool = False
    idempotency_key: str | None = None
    # the input's hash, the card's, the sampling, the selection and the name as idempotency key
    once: bool = False
    errors_path: str | None = None
    check_tokens: CheckTokens = CheckTokens.IF_LOCAL
    # defaults for requests that do not say otherwise; they go before the card's
    sampling: Mapping[str, Any] = field(default_factory=dict)
    # take results of other jobs: how this one comes to its results, and no part of what it is
    reuse: bool = False
    reading: Reading = field(default_factory=Reading)
    # which requests of the input are taken
    selection: Selection = field(default_factory=Selection)
    # for people, and no part of what makes a second submit the same
    labels: Mapping[str, str] = field(default_factory=dict)

    def sampling_text(self, card: Card) -> str | None:
        """`sampling` as the job keeps it, None for none; SettingsError names what is wrong."""
        return job_sampling_text(self.sampling, card.limits.max_total_tokens, card.sampling)


@dataclass(frozen=True)
class Submitted:
    """`created` is False when an earlier job with the same idempotency key answers.

    Then there is no report, unless that job came while this file was read; `is_same_input` says whether it was
    submitted with these very requests, None where it cannot be told (stdin).
    """

    job: Job
    created: bool
    report: Report | None = None
    is_same_input: bool | None = None


class InputRefusedError(InputError):
    """The file has bad lines, and nothing was stored; `report` says which."""

    def __init__(self, name: str, report: Report) -> None:
        super().__init__(
            f"{name}: {report.num_invalid:,} of {report.num_lines:,} lines are bad; nothing was stored."
            " Mend them, or run the good ones with --on-invalid skip"
        )
        self.report = report


def new_job_id() -> str:
    """50 random bits behind `job_`."""
    return queries.ID_PREFIX + "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


def submit(
    database: Database,
    settings: Settings,
    card: Card,
    paths: str | Sequence[str],
    options: SubmitOptions,
) -> Submitted:
    """Store a file, or several one after the other, as one job; `-` is stdin. Memory is bounded whatever their size.

    Raises InputRefusedError for bad lines under `reject`, InputError for a file that cannot be read or has no
    line. On any error, Ctrl-C included, nothing stays stored. With a key a second call returns the first job.
    """
    key = options.idempotency_key
    paths = [paths] if isinstance(paths, str) else paths
    options.sampling_text(card)  # what is wrong with it is said before a file is read
    sha256 = hash_inputs(paths, options.reading.mapping) if key or options.once else None
    if options.once and sha256 is not None:
        key = _once_key(sha256, card, options)
    if key is not None and (found := queries.find_job_by_key(database, key)):
        return Submitted(found, False, None, _is_same(found, sha256, options) if sha256 else None)
    admission, note = open_admission(card, settings, options.check_tokens, options.sampling)
    errors_file = open_errors_file(options.errors_path, paths)
    try:
        with Inputs(
            paths, card, options.reading, is_strict=options.strict, selection=options.selection
        ) as source:
            checker = LineChecker(
                card,
                LineLimits.of(settings),
                strict=options.strict,
                errors_file=errors_file,
                sampling=options.sampling,
                admission=admission,
            )
            checker.report.notes += [note] if note else []
            job_id, created = Staging(database, settings, card, options).store(source, checker, key)
            checker.report.notes += source.notes
            sha256 = source.sha256
    finally:
        if errors_file is not None:
            errors_file.close()
    job = queries.get_job(database, job_id)
    return Submitted(job, created, checker.report, None if created else _is_same(job, sha256, options))


def _is_same(job: Job, sha256: str, options: SubmitOptions) -> bool:
    return (job.input_sha256, job.selection) == (sha256, options.selection.text)


def _once_key(sha256: str, card: Card, options: SubmitOptions) -> str:
    """The name counts too: the same evaluations run once a night, each night under a name of its own."""
    key = f"once:{sha256}:{card.sha256}"
    parts = {"": options.sampling_text(card), "name-": options.name, "selection-": options.selection.text}
    for label, text in parts.items():
        if text is not None:
            key += f":{label}{hashlib.sha256(_storable(text).encode()).hexdigest()}"
    return key


class JobSource(Source, Protocol):
    """All lines of a job; the last two are known after the last one."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def input_format(self) -> InputFormat: ...


@dataclass(frozen=True)
class Lineage:
    """What a job comes from that runs requests of others again; `root_index` is told by a line's number."""

    ancestors: tuple[str, ...]
    root_index: Callable[[int], int]


class Staging:
    """One job on its way to the database."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        card: Card,
        options: SubmitOptions,
        lineage: Lineage | None = None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._card = card
        self._options = options
        self._lineage = lineage
        self._sampling = options.sampling_text(card)
        self._job_id = new_job_id()
        self._chunk = _OpenChunk(0)
        self._is_read = False
        self._is_refused = False

    def store(self, source: JobSource, checker: LineChecker, key: str | None = None) -> tuple[str, bool]:
        """The id of the job that answers, and whether it is this one."""
        # a pipe may stall for hours, and is not dead
        with kept_alive(lambda: submits.renew(self._database, self._job_id), submits.SUBMIT_LEASE_S):
            return self._store(source, checker, key)

    def _store(self, source: JobSource, checker: LineChecker, key: str | None) -> tuple[str, bool]:
        name = Path(source.name).name
        submits.begin(
            self._database,
            NewJob(
                self._job_id,
                self._card.name,
                self._card.sha256,
                self._card.text,
                _storable(name),
                _storable(self._options.name) if self._options.name else None,
                self._options.priority,
                self._options.deadline_s,
                self._sampling,
                self._options.selection.text,
                self._options.labels,
                self._lineage.ancestors if self._lineage else (),
                self._options.reuse,
            ),
        )
        try:
            self._store_lines(source, checker)
            if self._options.once:
                key = _once_key(source.sha256, self._card, self._options)
            created = submits.commit(
                self._database,
                self._job_id,
                num_requests=checker.report.num_lines,
                num_failed=checker.report.num_invalid,
                input_sha256=source.sha256,
                input_format=source.input_format,
                idempotency_key=key,
            )
        except DatabaseUnavailableError:
            if not self._is_stored():
                self._discard()
                raise
            created = True
        except BaseException:
            self._discard()
            raise
        if created:
            return self._job_id, True
        first = queries.find_job_by_key(self._database, key) if key else None
        if first is None:
            raise InputError("another submit with the same key came first and was undone; submit again")
        return first.id, False

    def _store_lines(self, source: JobSource, checker: LineChecker) -> None:
        lines = checker.check(source)
        while not self._is_read and not self._is_refused:
            new_chunks: list[NewChunk] = []
            submits.add(
                self._database,
                self._job_id,
                self._next_requests(lines, source, new_chunks),
                new_chunks,
                has_root=self._lineage is not None,
            )
        for _ in lines:
            pass  # only checked, so that every bad line is reported
        if checker.report.num_lines == 0:
            raise InputError(f"{source.name} has no requests: give one JSON object a line")
        if self._is_refused:
            raise InputRefusedError(source.name, checker.report)

    def _next_requests(
        self, lines: Iterator[CheckedLine], source: JobSource, new_chunks: list[NewChunk]
    ) -> Iterator[NewRequest]:
        """The next lines to be written at once; the chunks that they complete are added to `new_chunks`."""
        max_requests, max_tokens = self._settings.chunk_num_requests, self._settings.chunk_max_tokens
        num_chars = 0
        for num_requests, line in enumerate(lines, 1):
            if line.problems and self._options.on_invalid is OnInvalid.REJECT:
                self._is_refused = True
                return
            if self._chunk.is_full(line.num_tokens, max_requests, max_tokens):
                self._close_chunk(new_chunks)
            self._chunk.add(line)
            request = _new_request(line, source)
            if self._lineage is not None:
                request.root_index = self._lineage.root_index(line.number)
            yield request
            num_chars += len(line.body or "")
            if num_requests >= _BATCH_REQUESTS or num_chars >= _BATCH_CHARS:
                return
        self._close_chunk(new_chunks)
        self._is_read = True

    def _close_chunk(self, new_chunks: list[NewChunk]) -> None:
        chunk = self._chunk
        if chunk.num_requests:
            new_chunks.append(NewChunk(chunk.first_index, chunk.num_requests, chunk.num_failed))
        self._chunk = _OpenChunk(chunk.first_index + chunk.num_requests)

    def _is_stored(self) -> bool:
        """Whether the job is there all the same: a commit may go through and only its answer be lost."""
        try:
            queries.get_job(self._database, self._job_id)
        except (DatabaseUnavailableError, NotFoundError):
            return False
        return True

    def _discard(self) -> None:
        # should the database be away, the sweeper deletes it; the error that brought us here is the one to show
        with contextlib.suppress(DatabaseUnavailableError):
            recovery.discard_staged_job(self._database, self._job_id)


class _OpenChunk:
    """The chunk that lines are being added to."""

    def __init__(self, first_index: int) -> None:
        self.first_index = first_index
        self.num_requests = 0
        self.num_failed = 0
        self.num_tokens = 0

    def is_full(self, num_tokens: int, max_requests: int, max_tokens: int) -> bool:
        """Whether a further line of so many tokens belongs into the next chunk."""
        if self.num_requests == 0:
            return False
        return self.num_requests >= max_requests or self.num_tokens + num_tokens > max_tokens

    def add(self, line: CheckedLine) -> None:
        self.num_requests += 1
        self.num_failed += bool(line.problems)
        self.num_tokens += line.num_tokens


def _storable(text: str) -> str:
    """A name from the command line as text that every database takes: it may hold bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _new_request(line: CheckedLine, source: Source) -> NewRequest:
    if not line.problems:
        return NewRequest(line.index, line.custom_id, line.body)
    first = line.problems[0]
    where = str(source.place(line.number)) + (f", {first.path}" if first.path else "")
    return NewRequest(line.index, line.custom_id, None, first.code, f"{where}: {first.message}")


def submitted_as_dict(submitted: Submitted) -> dict[str, Any]:
    """What `submit --json` prints."""
    return {
        "id": submitted.job.id,
        "state": submitted.job.state,
        "counts": counts_as_dict(submitted.job.counts),
        "created": submitted.created,
    }
