"""Two jobs held against each other in one pass: counts of everything, examples of what changed."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from db import outcomes, queries
from db.database import Database
from db.errors import InputError, SettingsError
from db.outcomes import Outcome
from db.queries import Job
from jobs.comparison.answers import answers_of, request_of
from jobs.comparison.examples import Example, example_of
from jobs.comparison.pairs import By, choose_by, iterate_pairs
from jobs.comparison.patterns import PatternSearch
from jobs.comparison.scores import Match, Reference, passes, reference_of
from jobs.schema import OWN_FIELDS, REFERENCE_FIELDS

MAX_EXAMPLES = 50
_TOLERANCE = re.compile(r"[0-9]{1,3}(\.[0-9]{1,9})?%?")
# What makes no other request of a line.
_BESIDE_THE_REQUEST = OWN_FIELDS | REFERENCE_FIELDS


@dataclass
class Tally:
    """One job's side of the requests that both have. `lengths` counts completions by the bits of their number of
    tokens: 0, 1, 2 to 3, 4 to 7, and so on."""

    statuses: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    error_codes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    lengths: Counter[int] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.statuses[outcome.status.value] += 1
        if outcome.finish_reason is not None:
            self.finish_reasons[outcome.finish_reason] += 1
        if outcome.error_code is not None:
            self.error_codes[outcome.error_code] += 1
        self.prompt_tokens += outcome.prompt_tokens or 0
        if outcome.completion_tokens is not None:
            self.completion_tokens += outcome.completion_tokens
            self.lengths[outcome.completion_tokens.bit_length()] += 1


@dataclass
class Score:
    """How many answers were right, of the requests that could be scored in both jobs."""

    num_scored: int = 0
    num_right_a: int = 0
    num_right_b: int = 0
    num_gained: int = 0
    num_lost: int = 0

    def add(self, is_right_a: bool, is_right_b: bool) -> None:  # noqa: FBT001  one for each job, in their order
        self.num_scored += 1
        self.num_right_a += is_right_a
        self.num_right_b += is_right_b
        self.num_gained += is_right_b and not is_right_a
        self.num_lost += is_right_a and not is_right_b

    @property
    def share_a(self) -> Fraction:
        return Fraction(self.num_right_a, self.num_scored)

    @property
    def share_b(self) -> Fraction:
        return Fraction(self.num_right_b, self.num_scored)


@dataclass
class Comparison:
    """What `compare` found. Examples are the first ones; the numbers are of all."""

    a: Job
    b: Job
    by: By
    num_compared: int = 0
    num_only_a: int = 0
    num_only_b: int = 0
    num_changed: int = 0
    num_flipped: int = 0
    num_other_requests: int = 0
    num_other_references: int = 0
    num_unscored: int = 0
    num_unknown_matches: int = 0
    num_slow_patterns: int = 0
    tally_a: Tally = field(default_factory=Tally)
    tally_b: Tally = field(default_factory=Tally)
    scores: dict[Match, Score] = field(default_factory=dict)
    changed: list[Example] = field(default_factory=list)
    flipped: list[Example] = field(default_factory=list)

    def fallen(self, tolerance: Fraction) -> list[Match]:
        """The scores that fell by more than this share of the requests."""
        return [match for match, score in self.scores.items() if score.share_a - score.share_b > tolerance]


def parse_tolerance(text: str) -> Fraction:
    """`1%` or `0.01`, exactly; SettingsError for anything else."""
    if not _TOLERANCE.fullmatch(text) or (share := _share(text)) > 1:
        raise SettingsError(
            f"--tolerance {text[:20]}: give a share of the requests from 0 to 1, like 1% or 0.01"
        )
    return share


def _share(text: str) -> Fraction:
    return Fraction(text.removesuffix("%")) / (100 if text.endswith("%") else 1)


def compare(database: Database, a_id: str, b_id: str, by: By | None = None) -> Comparison:
    """Hold B against A, over the requests that have an outcome in both by now. Memory is bounded.

    InputError when there is none; NotFoundError for a job that is not there, or is deleted meanwhile.
    """
    a, b = queries.get_job(database, a_id), queries.get_job(database, b_id)
    found = Comparison(a, b, by or choose_by(database, a_id, b_id))
    with PatternSearch() as patterns:
        for pair in iterate_pairs(database, a_id, b_id, found.by):
            if pair.a is None:
                found.num_only_b += 1
            elif pair.b is None:
                found.num_only_a += 1
            else:
                _add(found, pair.a, pair.b, patterns)
        found.num_slow_patterns = patterns.num_slow
    if found.by is By.CUSTOM_ID:
        extent = outcomes.read_extent(database, b_id)
        num_b = extent.num_requests if extent.state.is_final else extent.num_results
        found.num_only_b = max(0, num_b - found.num_compared)
    for job_id in (a_id, b_id):
        queries.get_job(database, job_id)  # deleted meanwhile, it lacks rows
    if found.num_compared == 0:
        raise InputError(_why_nothing(found))
    found.scores = {match: found.scores[match] for match in Match if match in found.scores}
    return found


def _add(found: Comparison, a: Outcome, b: Outcome, patterns: PatternSearch) -> None:
    found.num_compared += 1
    found.tally_a.add(a)
    found.tally_b.add(b)
    request_a, request_b = request_of(a), request_of(b)
    found.num_other_requests += a.body != b.body and _is_other(request_a, request_b)
    # by one reference, the newer one: else a better one would look like another answer
    own, reference = reference_of(request_a), reference_of(request_b)
    found.num_other_references += own is not None and reference is not None and own != reference
    reference = reference or own
    is_same = a.status is b.status and a.result == b.result
    if is_same and reference is None:
        return
    answers_a, answers_b = answers_of(a), answers_of(b)
    is_changed = a.status is not b.status or answers_a != answers_b
    found.num_changed += is_changed
    flips = {} if reference is None else _score(found, reference, answers_a, answers_b, patterns)
    found.num_flipped += bool(flips)
    for is_one, examples in ((is_changed, found.changed), (bool(flips), found.flipped)):
        if is_one and len(examples) < MAX_EXAMPLES:
            examples.append(example_of(a, b, request_b or request_a, reference, flips, answers_a, answers_b))


def _score(
    found: Comparison,
    reference: Reference,
    answers_a: Sequence[str],
    answers_b: Sequence[str],
    patterns: PatternSearch,
) -> dict[Match, bool]:
    """Count the first choice of each job; the scores that flipped, and whether B's is right."""
    a, b = next(iter(answers_a), None), next(iter(answers_b), None)
    found.num_unknown_matches += not reference.matches
    flips = {}
    for match in reference.matches:
        is_right_a = passes(reference, match, a, patterns)
        is_right_b = is_right_a if a == b else passes(reference, match, b, patterns)
        if is_right_a is None or is_right_b is None:
            found.num_unscored += 1
            continue
        found.scores.setdefault(match, Score()).add(is_right_a, is_right_b)
        if is_right_a is not is_right_b:
            flips[match] = is_right_b
    return flips


def _is_other(a: dict[str, Any], b: dict[str, Any]) -> bool:
    names = (a.keys() | b.keys()) - _BESIDE_THE_REQUEST
    return any(name not in a or name not in b or a[name] != b[name] for name in names)


def _why_nothing(found: Comparison) -> str:
    for job in (found.a, found.b):
        if not job.state.is_final and job.counts.num_closed == 0:
            return f"{job.id} is {job.state} and has no result yet; promptmill wait {job.id}"
    hint = " --by index compares line by line" if found.by is By.CUSTOM_ID else ""
    return (
        f"{found.a.id} and {found.b.id} have no request in common, by {found.by};{hint or ' give two others'}"
    )


def notes_of(found: Comparison) -> list[str]:
    """What a reader of the figures has to know, one sentence each."""
    notes = []
    for job in (found.a, found.b):
        if not job.state.is_final:
            left = job.counts.pending + job.counts.running
            notes.append(f"{job.id} is {job.state}: {left:,} of its requests had no outcome and are left out")
    numbers = (
        (found.num_other_requests, "requests are not the same in both jobs"),
        (found.num_other_references, "references or ways to match are not the same in both; B's count"),
        (found.num_unknown_matches, f"requests have a match that is none of {', '.join(Match)}: not scored"),
        (found.num_unscored, "scores are left out: a reference that cannot be used so, or a text too long"),
        (found.num_slow_patterns, "patterns took too long and were given up"),
    )
    return notes + [f"{number:,} {text}" for number, text in numbers if number]
