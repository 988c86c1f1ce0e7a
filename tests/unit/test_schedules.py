"""What a schedule keeps of a submit: all of it, understood, and nothing that could not run at night."""

from dataclasses import fields
from pathlib import Path

import pytest

from db import queries, schedules
from db.database import Database
from db.errors import InputError, NotFoundError, SettingsError
from db.states import InputFormat
from jobs.admission import CheckTokens
from jobs.cards import Card
from jobs.dialects.reading import Reading
from jobs.schedules import ScheduledSubmit, add, expand, run_now, schedule_as_dict
from jobs.selection import Selection
from jobs.settings import Settings
from jobs.submit import OnInvalid, SubmitOptions

FULL = SubmitOptions(
    name="nightly-%F",
    priority=-3,
    deadline_s=3600.0,
    on_invalid=OnInvalid.SKIP,
    strict=True,
    errors_path="/errors.jsonl",
    check_tokens=CheckTokens.NEVER,
    sampling={"temperature": 0.5, "max_tokens": 7},
    labels={"team": "eval"},
    reuse=True,
    selection=Selection((1, 4), percent=2.5, seed=3, limit=10),
    reading=Reading(InputFormat.CSV, "{{ question }} \u2028", None, None, is_model_given=True),
)


@pytest.fixture
def scheduled(card: Card, tmp_path: Path) -> ScheduledSubmit:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "x"}\n')
    return ScheduledSubmit.of([str(path)], card, SubmitOptions(name="n-%F"))


def test_a_submit_comes_back_as_it_was_kept(card: Card) -> None:
    of = ScheduledSubmit.of(["/a.csv", "/b.csv"], card, FULL)
    back = ScheduledSubmit.from_json(of.to_json())
    assert back == of
    assert back.options == FULL
    assert type(back.options.on_invalid) is OnInvalid
    assert type(back.options.reading.input_format) is InputFormat


def test_no_option_of_a_submit_is_at_its_default_above() -> None:
    """Else the test above would not see that it is lost."""
    refused = {"once", "idempotency_key"}
    default = SubmitOptions()
    for field in fields(SubmitOptions):
        if field.name not in refused:
            assert getattr(FULL, field.name) != getattr(default, field.name), field.name


def test_paths_are_those_of_the_folder_where_it_was_added(card: Card, tmp_path: Path) -> None:
    of = ScheduledSubmit.of(["in.jsonl", "/b.jsonl"], card, SubmitOptions(errors_path="e.jsonl"))
    assert of.paths == (str(tmp_path / "in.jsonl"), "/b.jsonl")
    assert of.options.errors_path == str(tmp_path / "e.jsonl")
    assert of.missing() == list(of.paths)


def test_a_pattern_means_the_files_that_match_when_it_is_due(
    card: Card, tmp_path: Path, sqlite_database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "with [brackets]"
    folder.mkdir()
    monkeypatch.chdir(folder)
    of = ScheduledSubmit.of(["*.jsonl"], card, SubmitOptions())
    assert of.missing() == list(of.paths)
    with pytest.raises(InputError, match="no file matches"):
        of.run(sqlite_database, settings, 0.0, "UTC", None)
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text('{"prompt": "x"}\n')
    monkeypatch.chdir(tmp_path)
    assert of.missing() == []
    assert of.run(sqlite_database, settings, 0.0, "UTC", None).job.counts.total == 2


@pytest.mark.parametrize(
    ("paths", "options", "said"),
    [
        (["a.jsonl", "-"], SubmitOptions(), "no stdin"),
        (["a.jsonl"], SubmitOptions(once=True), "have no place in a schedule"),
        (["a.jsonl"], SubmitOptions(idempotency_key="k"), "have no place in a schedule"),
        (["a.jsonl"], SubmitOptions(sampling={"top_p": 7}), "--top-p"),
        (["a.csv"], SubmitOptions(reading=Reading(template="{{ a")), "--template, line 1"),
    ],
)
def test_what_could_not_run_at_night_is_refused_by_day(
    card: Card, paths: list[str], options: SubmitOptions, said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        ScheduledSubmit.of(paths, card, options)


def test_words_that_are_not_utf8_are_refused(sqlite_database: Database, card: Card) -> None:
    of = ScheduledSubmit.of(["/\udc80.jsonl"], card, SubmitOptions())
    with pytest.raises(SettingsError, match="UTF-8"):
        add(sqlite_database, "nightly", "0 2 * * *", "UTC", [], of, replace=False)


@pytest.mark.parametrize(
    ("name", "zone", "expected"),
    [
        ("nightly-%F", "UTC", "nightly-2026-11-25"),
        ("nightly-%F", "Europe/Berlin", "nightly-2026-11-26"),
        ("%H%M %Z", "Europe/Berlin", "0030 CET"),
        ("100 %% sure", "UTC", "100 % sure"),
        ("plain", "UTC", "plain"),
    ],
)
def test_a_name_is_filled_in_by_the_zone_s_clock(name: str, zone: str, expected: str) -> None:
    assert expand(name, 1_795_649_400, zone) == expected


@pytest.mark.parametrize("name", ["", "x" * 201, "two\nlines", "\x1b[2J"])
def test_a_schedule_has_a_name_that_can_be_shown(
    sqlite_database: Database, scheduled: ScheduledSubmit, name: str
) -> None:
    with pytest.raises(SettingsError, match="1 to 200 printable characters"):
        add(sqlite_database, name, "0 2 * * *", "UTC", [], scheduled, replace=False)


def test_run_now_makes_a_job_and_leaves_the_due_times(
    sqlite_database: Database, settings: Settings, scheduled: ScheduledSubmit
) -> None:
    before = add(sqlite_database, "nightly", "0 2 * * *", "UTC", ["submit"], scheduled, replace=False)
    ids = [run_now(sqlite_database, settings, "nightly").job.id for _ in range(2)]
    assert len(set(ids)) == 2, "whoever asks twice gets two"
    after = schedules.get(sqlite_database, "nightly")
    assert (after.due_at, after.last_job_id, after.num_fired) == (before.due_at, ids[1], 2)
    job = queries.get_job(sqlite_database, ids[0])
    assert job.name is not None
    assert job.name.startswith("n-20")


def test_run_now_says_what_is_wrong_and_keeps_nothing(
    sqlite_database: Database, settings: Settings, scheduled: ScheduledSubmit
) -> None:
    add(sqlite_database, "nightly", "0 2 * * *", "UTC", ["submit"], scheduled, replace=False)
    Path(scheduled.paths[0]).unlink()
    with pytest.raises(InputError, match=r"in\.jsonl"):
        run_now(sqlite_database, settings, "nightly")
    after = schedules.get(sqlite_database, "nightly")
    assert (after.last_fired_at, after.last_error, after.num_fired) == (None, None, 0)
    with pytest.raises(NotFoundError):
        run_now(sqlite_database, settings, "weekly")


def test_a_schedule_as_json(sqlite_database: Database, scheduled: ScheduledSubmit) -> None:
    words = ["submit", "in.jsonl"]
    added = add(sqlite_database, "nightly", "0 2 * * *", "Europe/Berlin", words, scheduled, replace=False)
    shown = schedule_as_dict(added)
    assert shown["arguments"] == words
    assert shown["due_at"].endswith(":00:00.000Z")
    assert (shown["last_job_id"], shown["last_error"], shown["num_fired"], shown["is_firing"]) == (
        None,
        None,
        0,
        False,
    )
