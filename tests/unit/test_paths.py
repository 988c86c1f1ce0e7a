"""Patterns become files as a shell would make them; a file's own name is never taken for a pattern."""

import os
from pathlib import Path

import pytest

from db.errors import InputError
from jobs.paths import expand


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with files in it and in folders below."""
    names = ["b.jsonl", "a.jsonl", "c.csv", ".hidden.jsonl", "deep/er/d.jsonl", "deep/e.jsonl", "x[1].jsonl"]
    for name in names:
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "here" / "folder.jsonl").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("given", "files"),
    [
        ("*.jsonl", ["a.jsonl", "b.jsonl", "x[1].jsonl"]),
        ("[ab].jsonl", ["a.jsonl", "b.jsonl"]),
        ("?.csv", ["c.csv"]),
        ("./deep/*.jsonl", ["./deep/e.jsonl"]),
        ("deep/**/*.jsonl", ["deep/e.jsonl", "deep/er/d.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "deep/e.jsonl", "deep/er/d.jsonl", "x[1].jsonl"]),
        ("**/[de].jsonl", ["deep/e.jsonl", "deep/er/d.jsonl"]),
        ("../here/c*", ["../here/c.csv"]),
        ("a.jsonl", ["a.jsonl"]),
        ("x[1].jsonl", ["x[1].jsonl"]),
        ("none.jsonl", ["none.jsonl"]),
        ("-", ["-"]),
        ("y" * 300 + "*", ["y" * 300 + "*"]),
    ],
)
def test_a_pattern_is_expanded_in_order_and_all_else_is_left(given: str, files: list[str]) -> None:
    assert expand([given]) == files


def test_an_absolute_pattern_gives_absolute_files(folder: Path) -> None:
    assert expand([f"{folder}/?.csv"]) == [f"{folder}/c.csv"]


@pytest.mark.usefixtures("folder")
def test_several_keep_their_order() -> None:
    assert expand(["c.csv", "[ab].jsonl", "-"]) == ["c.csv", "a.jsonl", "b.jsonl", "-"]


def test_a_name_that_looks_like_a_pattern_is_a_name_where_there_is_such_a_file(folder: Path) -> None:
    assert expand(["a*.jsonl"]) == ["a.jsonl"]
    (folder / "a*.jsonl").touch()
    (folder / "ab.jsonl").touch()
    assert expand(["a*.jsonl"]) == ["a*.jsonl"]


def test_a_pipe_that_matches_is_one_of_them(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jsonl")
    assert expand(["p*"]) == ["pipe.jsonl"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("given", "where"),
    [
        ("*.json", r"\."),
        ("deep/f*", "deep"),
        ("folder.*", r"\."),
        ("no/where/*", "no/where"),
        ("**/z", r"\."),
    ],
)
def test_a_pattern_without_a_match_says_where_to_look(given: str, where: str) -> None:
    with pytest.raises(InputError, match=rf"no file matches .*; see what there is: ls {where}$"):
        expand(["a.jsonl", given])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("given", "pattern"), [("deep", "deep/*.jsonl"), ("deep/", "deep/*.jsonl"), (".", "./*.jsonl")]
)
def test_a_folder_proposes_its_pattern(given: str, pattern: str) -> None:
    with pytest.raises(InputError) as caught:
        expand([given])
    assert str(caught.value) == f"{given} is a folder; give its files, by a pattern like '{pattern}'"


def test_the_pattern_that_a_folder_proposes_is_right_for_odd_names_too(folder: Path) -> None:
    (folder / "x[1]").mkdir()
    (folder / "x[1]" / "f.jsonl").touch()
    with pytest.raises(InputError) as caught:
        expand(["x[1]"])
    assert expand([str(caught.value).split("'")[1]]) == ["x[1]/f.jsonl"]
