"""Two jobs held against each other: what matches what, what is counted, and what is shown of it."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cli
from db import outcomes
from db.database import Database
from db.errors import InputError, NotFoundError, SettingsError
from db.leases import NewResult
from jobs.comparison import compare as comparing
from jobs.comparison import pairs
from jobs.comparison.compare import Comparison, compare, notes_of, parse_tolerance
from jobs.comparison.examples import diff_lines, diff_words
from jobs.comparison.figures import as_dict, rows_of
from jobs.comparison.pairs import By, iterate_pairs
from jobs.comparison.scores import Match, Reference, reference_of
from jobs.control import cancel
from jobs.retention import delete


def _answer(index: int, said: object, **values: Any) -> NewResult:
    """`said` is the response's text, or the whole `result`."""
    result = {"response": said} if isinstance(said, str) else said
    known = {"finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 2}
    return NewResult(index, result=json.dumps(result), **{**known, **values})


def _failure(index: int) -> NewResult:
    return NewResult(index, error_code="engine_error", error_message="it broke")


class Nights:
    """Makes jobs of lines and their answers, and compares them."""

    def __init__(self, database: Database, store: Any, finish: Any) -> None:
        self.database = database
        self._store = store
        self._finish = finish

    def job(self, *requests: tuple[dict[str, Any], str | NewResult]) -> str:
        lines = [{"prompt": "x", **line} for line, _ in requests]
        job_id = str(self._store(*lines))
        results = [
            _answer(index, one) if isinstance(one, str) else one for index, (_, one) in enumerate(requests)
        ]
        self._finish(self.database, job_id, *results)
        return job_id

    def queued(self, *lines: dict[str, Any], num_finished: int = 0) -> str:
        job_id = str(self._store(*({"prompt": "x", **line} for line in lines), chunk_size=1))
        self._finish(self.database, job_id, max_chunks=num_finished)
        return job_id

    def compare(self, a: str, b: str, by: By | None = None) -> Comparison:
        return compare(self.database, a, b, by)


@pytest.fixture
def nights(sqlite_database: Database, store: Any, finish: Any) -> Nights:
    return Nights(sqlite_database, store, finish)


def _id(custom_id: str, **more: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, **more}


# --- what matches what -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [1, 2, 500])
def test_custom_ids_match_whatever_their_order(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(pairs, "_PAGE_IDS", page)
    a = nights.job((_id("p"), "1"), (_id("q"), "2"), (_id("gone"), "3"))
    b = nights.job((_id("new"), "0"), (_id("q"), "2"), (_id("p"), "other"), (_id("newer"), "0"))
    found = nights.compare(a, b)
    assert found.by is By.CUSTOM_ID
    assert (found.num_compared, found.num_only_a, found.num_only_b) == (2, 1, 2)
    assert [(one.custom_id, one.index_a, one.index_b) for one in found.changed] == [("p", 0, 2)]


def test_one_request_without_a_custom_id_and_all_match_by_index(nights: Nights) -> None:
    a = nights.job((_id("p"), "1"), (_id("q"), "2"), ({}, "3"))
    b = nights.job((_id("q"), "1"), (_id("p"), "2"))
    found = nights.compare(a, b)
    assert (found.by, found.num_compared, found.num_only_a, found.num_changed) == (By.INDEX, 2, 1, 0)
    back = nights.compare(b, a)
    assert (back.num_compared, back.num_only_a, back.num_only_b) == (2, 0, 1)
    forced = nights.compare(a, b, By.CUSTOM_ID)
    assert (forced.num_compared, forced.num_only_a, forced.num_changed) == (2, 1, 2)


def test_a_bad_line_is_no_reason_to_leave_the_custom_ids(nights: Nights) -> None:
    a = nights.job((_id("p"), "1"), ({"prompt": 5}, "2"))
    assert nights.compare(a, nights.job((_id("p"), "1"))).by is By.CUSTOM_ID


@pytest.mark.parametrize("page", [1, 2, 1_000])
def test_by_index_every_outcome_comes_once_also_with_gaps(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(outcomes, "_PAGE_REQUESTS", page)
    a = nights.queued({}, {}, {"prompt": 5}, {}, num_finished=1)
    b = nights.queued({}, {"prompt": 5}, num_finished=1)
    seen = [
        (pair.a and pair.a.index, pair.b and pair.b.index)
        for pair in iterate_pairs(nights.database, a, b, By.INDEX)
    ]
    assert seen == [(0, 0), (None, 1), (2, None)]


# --- what is counted ---------------------------------------------------------------------------------------------


def test_a_job_and_itself_are_the_same(nights: Nights) -> None:
    job_id = nights.job((_id("p", reference="Paris"), "Paris"), (_id("q"), _failure(1)))
    found = nights.compare(job_id, job_id)
    assert (found.num_compared, found.num_changed, found.num_flipped) == (2, 0, 0)
    assert {row.delta for row in rows_of(found)} == {"="}
    assert notes_of(found) == []


def test_statuses_finish_reasons_errors_and_tokens_are_added_up(nights: Nights) -> None:
    a = nights.job(({}, "x"), ({}, "y"), ({}, _failure(2)))
    long = _answer(1, "y", finish_reason="length", completion_tokens=256)
    b = nights.job(({}, "x"), ({}, long), ({}, "now it works"))
    found = nights.compare(a, b)
    assert {row.name: (row.a, row.b, row.delta) for row in rows_of(found)} == {
        "succeeded": (2, 3, "+1"),
        "failed": (1, 0, "-1"),
        "finish stop": (2, 2, "="),
        "finish length": (0, 1, "+1"),
        "error engine_error": (1, 0, "-1"),
        "prompt tokens": (6, 9, "+3"),
        "completion tokens": (4, 260, "+256"),
    }
    assert (found.tally_a.lengths, found.tally_b.lengths) == ({2: 2}, {2: 2, 9: 1})
    assert [one.change for one in found.changed] == ["failed: engine_error → succeeded"]


def test_only_what_was_said_counts_as_changed(nights: Nights) -> None:
    def with_logprob(index: int, logprob: float) -> NewResult:
        result = {"response": "x", "logprobs": {"content": [{"token": "x", "logprob": logprob}]}}
        return _answer(index, result)

    def calling(index: int, city: str) -> NewResult:
        calls = [{"name": "weather", "arguments": {"city": city}}]
        return _answer(index, {"response": "", "tool_calls": calls})

    def choosing(index: int, *texts: str) -> NewResult:
        choices = [{"index": number, "response": text} for number, text in enumerate(texts)]
        return _answer(index, {"choices": choices})

    def streamed(index: int, *pieces: str) -> NewResult:
        events = [f"data: {json.dumps({'response': piece})}\n\n" for piece in pieces]
        text = "".join([*events, "data: [DONE]\n\n"])
        return NewResult(
            index, result=json.dumps(text), finish_reason="stop", prompt_tokens=3, completion_tokens=2
        )

    makers: tuple[Any, ...] = (with_logprob, calling, choosing, streamed)
    before: Any = [(-0.1,), ("Rome",), ("x", "y"), ("a", "b")]
    same: Any = [(-0.2,), ("Rome",), ("x", "y"), ("ab",)]
    other: Any = [(-0.2,), ("Oslo",), ("x", "z"), ("a", "c")]
    jobs = [
        nights.job(
            *(
                ({}, make(number, *said))
                for number, (make, said) in enumerate(zip(makers, given, strict=True))
            )
        )
        for given in (before, same, other)
    ]
    assert nights.compare(jobs[0], jobs[1]).num_changed == 0
    assert [one.index_a for one in nights.compare(jobs[0], jobs[2]).changed] == [1, 2, 3]


def test_examples_are_bounded_and_counts_are_not(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "MAX_EXAMPLES", 2)
    line = {"reference": "right", "match": "exact"}
    a = nights.job(*[(line, "right")] * 5)
    b = nights.job(*[(line, "wrong" + "!" * 5_000)] * 5)
    found = nights.compare(a, b)
    assert (found.num_changed, found.num_flipped) == (5, 5)
    assert (len(found.changed), len(found.flipped)) == (2, 2)
    assert len(found.changed[0].answer_b or "") < 2_100


# --- scores ------------------------------------------------------------------------------------------------------


def test_scores_count_what_was_gained_and_lost(nights: Nights) -> None:
    lines = [_id(name, metadata={"reference": "Paris"}) for name in "pqrs"]
    a = nights.job(*zip(lines, ["Paris", "It is Paris", "Rome", "Paris"], strict=True))
    b = nights.job(*zip(lines, ["Rome", "Paris", "Paris!", "Paris"], strict=True))
    found = nights.compare(a, b)
    exact, contains = found.scores.values()
    assert list(found.scores) == ["exact", "contains"]
    assert (exact.num_scored, exact.num_right_a, exact.num_right_b) == (4, 2, 2)
    assert (exact.num_gained, exact.num_lost) == (1, 1)
    assert (contains.share_a, contains.share_b) == (Fraction(3, 4), Fraction(3, 4))
    assert [(one.custom_id, one.change) for one in found.flipped] == [
        ("p", "exact: now wrong, contains: now wrong"),
        ("q", "exact: now right"),
        ("r", "contains: now right"),
    ]


def test_a_request_that_failed_has_it_wrong(nights: Nights) -> None:
    line = {"reference": "Paris", "match": "exact"}
    found = nights.compare(nights.job((line, "Paris")), nights.job((line, _failure(0))))
    assert found.scores[Match.EXACT].num_lost == 1
    assert found.fallen(Fraction(0)) == ["exact"]


def test_both_are_scored_by_bs_reference_and_by_as_where_b_has_none(nights: Nights) -> None:
    a = nights.job(({"reference": "old"}, "new"), ({"reference": "kept"}, "kept"))
    b = nights.job(({"reference": "new"}, "new"), ({}, "kept"))
    found = nights.compare(a, b)
    assert (found.scores[Match.EXACT].num_right_a, found.scores[Match.EXACT].num_right_b) == (2, 2)
    assert found.num_other_references == 1
    assert found.num_other_requests == 0


def test_what_cannot_be_scored_is_left_out_on_both_sides_and_said(nights: Nights) -> None:
    lines = [{"reference": "("}, {"reference": "x" * 1_001}, {"reference": "x"}]
    job_id = nights.job(
        *(({**line, "match": "regex"}, "x") for line in lines), ({"reference": "x", "match": "?"}, "x")
    )
    found = nights.compare(job_id, job_id)
    assert found.scores[Match.REGEX].num_scored == 1
    assert (found.num_unscored, found.num_unknown_matches) == (2, 1)
    assert [note.split(" ", 1)[0] for note in notes_of(found)] == ["1", "2"]


def test_requests_that_are_not_the_same_are_said(nights: Nights) -> None:
    a = nights.job((_id("p", max_tokens=5, metadata={"n": 1}), "x"), (_id("q"), "x"))
    b = nights.job((_id("q", metadata={"n": 2}), "x"), (_id("p", max_tokens=6), "x"))
    assert notes_of(nights.compare(a, b)) == ["1 requests are not the same in both jobs"]


@pytest.mark.parametrize(
    ("num_right", "tolerance", "has_fallen"),
    [
        (100, "0", False),
        (99, "0", True),
        (99, "1%", False),
        (98, "1%", True),
        (71, "29%", False),
        (70, "0.29", True),
    ],
)
def test_a_score_falls_by_more_than_the_tolerance_exactly(
    num_right: int,
    tolerance: str,
    has_fallen: bool,  # noqa: FBT001  pytest's
) -> None:
    score = comparing.Score(num_scored=100, num_right_a=100, num_right_b=num_right)
    found = Comparison(None, None, By.INDEX, scores={Match.EXACT: score})  # type: ignore[arg-type]
    assert bool(found.fallen(parse_tolerance(tolerance))) is has_fallen


@pytest.mark.parametrize(
    "text", ["", "%", "-1", "101%", "1.1", "nan", "inf", "1e-3", "1e-999999999", "a lot", "1 %", "٣%"]
)
def test_what_is_no_tolerance(text: str) -> None:
    with pytest.raises(SettingsError, match="--tolerance"):
        parse_tolerance(text)


@pytest.mark.parametrize("options", [["--strict"], []])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("in.jsonl", '{"prompt": "x", "metadata": {"reference": "Paris", "match": "exact"}}\n'),
        ("in.jsonl", '{"prompt": "x", "reference": "Paris", "match": "exact"}\n'),
        ("in.csv", "prompt,reference,match\nx,Paris,exact\n"),
        (
            "in.jsonl",
            '{"custom_id": "p", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user",'
            ' "content": "x"}], "metadata": {"reference": "Paris", "match": "exact"}}}\n',
        ),
    ],
)
def test_every_form_in_carries_references_without_a_warning(
    sqlite_database: Database, tmp_path: Path, name: str, text: str, options: list[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    result = CliRunner().invoke(cli.main, ["submit", str(path), *options])
    assert result.exit_code == 0, result.output
    assert "warning" not in result.stderr
    (body,) = outcomes.iterate_bodies(sqlite_database, result.stdout.strip())
    assert reference_of(json.loads(body)) == Reference("Paris", (Match.EXACT,))


# --- jobs that are not over, or not there ------------------------------------------------------------------------


def test_of_a_job_that_runs_there_is_what_is_finished(nights: Nights) -> None:
    lines = [_id("p"), _id("q"), _id("r")]
    a = nights.job(*((line, f"answer {index}") for index, line in enumerate(lines)))
    b = nights.queued(*lines, num_finished=1)
    found = nights.compare(a, b)
    assert (found.num_compared, found.num_changed, found.num_only_a, found.num_only_b) == (1, 0, 2, 0)
    assert notes_of(found) == [f"{b} is in_progress: 2 of its requests had no outcome and are left out"]
    cancel(nights.database, b)
    over = nights.compare(a, b)
    assert (over.num_compared, over.tally_b.statuses["cancelled"], over.num_only_b) == (3, 2, 0)


def test_nothing_to_compare_is_an_error_that_says_why(nights: Nights) -> None:
    a, b = nights.job((_id("p"), "x")), nights.job((_id("q"), "x"))
    with pytest.raises(InputError, match="no request in common, by custom_id; --by index"):
        nights.compare(a, b)
    waiting = nights.queued(_id("p"))
    with pytest.raises(InputError, match=f"{waiting} is queued and has no result yet"):
        nights.compare(a, waiting)


def test_a_job_that_is_deleted_meanwhile_is_no_comparison(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = nights.job(({}, "x")), nights.job(({}, "x"))

    def then_delete(database: Database, *arguments: Any) -> Any:
        yield from iterate_pairs(database, *arguments)
        delete(database, b)

    monkeypatch.setattr(comparing, "iterate_pairs", then_delete)
    with pytest.raises(NotFoundError, match=b):
        nights.compare(a, b)


# --- what is shown -----------------------------------------------------------------------------------------------


def test_a_diff_by_lines_and_by_words(nights: Nights) -> None:
    found = nights.compare(nights.job(({}, "one\ntwo\nthree")), nights.job(({}, "one\n2 \x1b[31m\nthree")))
    (example,) = found.changed
    assert diff_lines(example) == ["@@ -1,3 +1,3 @@", " one", "-two", "+2 \ufffd[31m", " three"]
    assert diff_words(example) == [("=", "one\n"), ("-", "two"), ("+", "2 \ufffd[31m"), ("=", "\nthree")]


def test_a_change_that_no_line_shows_is_said(nights: Nights) -> None:
    found = nights.compare(nights.job(({}, "one\n")), nights.job(({}, "one")))
    assert diff_lines(found.changed[0]) == ["@@ they differ in white space, or after what is shown @@"]


def test_the_json_is_plain_data(nights: Nights) -> None:
    a, b = nights.job((_id("p", reference="Paris", match="exact"), "Paris")), nights.job((_id("p"), "Rome"))
    told = json.loads(json.dumps(as_dict(nights.compare(a, b), Fraction(1, 100))))
    assert (told["a"]["job"]["id"], told["b"]["job"]["id"], told["by"]) == (a, b, "custom_id")
    assert told["scores"] == {
        "exact": {
            "num_scored": 1,
            "num_right_a": 1,
            "num_right_b": 0,
            "num_gained": 0,
            "num_lost": 1,
            "a": 1.0,
            "b": 0.0,
        }
    }
    assert (told["fallen"], told["tolerance"], told["num_flipped"]) == (["exact"], 0.01, 1)
    (example,) = told["flipped"]
    assert example["flips"] == {"exact": "lost"}
    assert (example["response_a"], example["response_b"], example["prompt"]) == ("Paris", "Rome", "x")
    assert told["changed"] == [example]
