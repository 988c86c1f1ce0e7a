"""Selections of files in every dialect: what is not taken is not looked at, and lines keep their numbers."""

import gzip
import hashlib
import io
import json
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from db.errors import InputError
from jobs.cards import find_card
from jobs.dialects.inputs import Inputs
from jobs.dialects.reading import Reading
from jobs.reader import LineLimits
from jobs.selection import Picker, Selection, selection_of
from jobs.validation import CheckedLine, LineChecker, Report, validate

SMALL = find_card(Path("no-home"), "smollm2-135m-instruct")
LIMITS = LineLimits(1024 * 1024, 100)
GIVEN = Reading(is_model_given=True)
NUM_LINES = 700  # more than a block of any dialect
SELECTIONS = [
    selection_of(shard="2/3"),
    selection_of(sample="10"),
    selection_of(sample="5%", seed=3),
    selection_of(limit=300),
    selection_of(shard="1/2", sample="100", limit=40, seed=5),
    selection_of(sample="9999"),
]


def openai(number: int) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": f"say {number}"}]}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def native(number: int) -> dict[str, Any]:
    return {"custom_id": f"r{number}", "prompt": f"say {number}"}


def _lines(values: list[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(value) + b"\n" for value in values)


def _parquet() -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([native(number) for number in range(NUM_LINES)]), file)
    return file.getvalue()


def content_of(kind: str) -> bytes:
    natives = [native(number) for number in range(NUM_LINES)]
    if kind == "card":
        return _lines(natives)
    if kind == "gzip":
        return gzip.compress(_lines(natives))
    if kind == "openai":
        return _lines([openai(number) for number in range(NUM_LINES)])
    if kind == "array":
        return orjson.dumps(natives)
    if kind == "cloudflare":
        return orjson.dumps({"requests": natives})
    if kind == "csv":
        rows = "".join(f'r{number},"say {number}"\n' for number in range(NUM_LINES))
        return f"custom_id,prompt\n{rows}".encode()
    return _parquet()


def read(
    *paths: str, selection: Selection, reading: Reading = GIVEN, limits: LineLimits = LIMITS
) -> tuple[list[CheckedLine], Report, Inputs]:
    with Inputs(paths, SMALL, reading, selection=selection) as source:
        checker = LineChecker(SMALL, limits)
        lines = list(checker.check(source))
        checker.report.notes += source.notes
        assert source.sha256 == _sha256(*paths), "the hash is that of the whole input"
        return lines, checker.report, source


def _sha256(*paths: str) -> str:
    hashes = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    return (
        hashes[0]
        if len(paths) == 1
        else hashlib.sha256("".join(f"{h}\n" for h in hashes).encode()).hexdigest()
    )


def ids(lines: list[CheckedLine]) -> list[str | None]:
    return [line.custom_id for line in lines]


def expected(selection: Selection, num_requests: int = NUM_LINES) -> list[str]:
    return [f"r{place}" for place in Picker(selection, num_requests).take(range(num_requests))]


KINDS = ["card", "gzip", "openai", "array", "cloudflare", "csv", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_dialect_gives_the_same_requests(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "in"
    path.write_bytes(content_of(kind))
    for selection in SELECTIONS:
        lines, report, source = read(str(path), selection=selection)
        assert ids(lines) == expected(selection)
        assert [line.index for line in lines] == list(range(len(lines))), "the index counts what is taken"
        assert report.errors == []
        # a CSV's header is its first line
        first = 2 if kind == "csv" else 1
        places = [int((line.custom_id or "")[1:]) for line in lines]
        assert [source.place(line.number).number for line in lines] == [place + first for place in places]


@pytest.mark.parametrize("kind", KINDS)
def test_stdin_and_a_pipe_are_like_a_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, selection = content_of(kind), selection_of(shard="2/3", sample="20", limit=15)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(content), daemon=True)
    writer.start()
    for path in ("-", str(tmp_path / "pipe")):
        with Inputs([path], SMALL, GIVEN, selection=selection) as source:
            assert ids(list(LineChecker(SMALL, LIMITS).check(source))) == expected(selection)
            assert source.sha256 == hashlib.sha256(content).hexdigest()
    writer.join(30)


def test_several_files_are_one_input(tmp_path: Path) -> None:
    """Each in its own dialect; errors name the file and its own line."""
    numbers = iter(range(30))
    jsonl, empty, array, table = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.json", "d.csv"))
    jsonl.write_bytes(_lines([native(next(numbers)) for _ in range(10)]))
    empty.touch()
    array.write_bytes(orjson.dumps([native(next(numbers)) for _ in range(10)]))
    table.write_text("custom_id,prompt\n" + "".join(f"r{number},x\n" for number in numbers))
    paths = [str(path) for path in (jsonl, empty, array, table)]
    for selection in (selection_of(shard="3/4"), selection_of(sample="7"), selection_of(limit=11)):
        lines, _, source = read(*paths, selection=selection)
        assert ids(lines) == expected(selection, 30)
        for line in lines:
            file, within = divmod(int((line.custom_id or "")[1:]), 10)
            place = source.place(line.number)
            assert place.file == [str(jsonl), str(array), str(table)][file]
            assert place.number == within + (2 if file == 2 else 1)


def test_a_bad_line_that_is_not_taken_refuses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "x"}\n\nno json\n{"prompt": "x", "odd": 1}\n{"prompt": 5}\n')
    first, report, _ = read(str(path), selection=selection_of(shard="1/2"))
    assert [line.problems for line in first] == [(), ()]
    assert [warning.first_line for warning in report.warnings] == [4], (
        "a blank line is counted, and no request"
    )
    _, report, _ = read(str(path), selection=selection_of(shard="2/2"))
    assert [(error.line, error.code) for error in report.errors] == [
        (3, "invalid_json"),
        (5, "invalid_request"),
    ]
    assert report.warnings == []
    assert validate(SMALL, str(path), LIMITS, selection=selection_of(limit=1)).is_valid


def test_bad_rows_and_lines_too_long_count_as_the_requests_they_are(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text(f'custom_id,prompt\nr0,x\na,b,c\nr2,{"x" * 100}\nr3,"a\nb"\nr4,x\n')
    limits = LineLimits(60, 100)
    for shard, found in (
        ("1/2", ["r0", None, "r4"]),
        ("2/2", [None, "r3"]),
    ):
        lines, _, _ = read(str(path), selection=selection_of(shard=shard), limits=limits)
        assert ids(lines) == found


def test_only_taken_custom_ids_are_compared_and_only_taken_lines_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = [{**openai(0), "custom_id": f"r{number // 2}"} for number in range(4)]
    lines[1]["body"]["model"] = "another"
    path.write_bytes(_lines(lines))
    _, report, _ = read(str(path), selection=selection_of(shard="1/2"))
    assert (report.errors, report.notes) == ([], [])
    _, report, _ = read(str(path), selection=selection_of(limit=2))
    assert [error.code for error in report.errors] == ["duplicate_custom_id"]
    assert [note.partition(" (")[0] for note in report.notes] == ["1 line name another model"], (
        "also when it stops early"
    )


@pytest.mark.parametrize("kind", ["csv", "parquet", "card"])
def test_templates_make_the_prompts_of_taken_rows_alone(tmp_path: Path, kind: str) -> None:
    """A row whose template fails, in the other shard, does no harm."""
    path = tmp_path / f"in.{kind}"
    rows = [{"custom_id": f"r{number}", "word": None if number % 2 else f"w{number}"} for number in range(6)]
    if kind == "card":
        path.write_bytes(_lines(rows))
    elif kind == "csv":
        path.write_text(
            "custom_id,word\n" + "".join(f"{row['custom_id']},{row['word'] or ''}\n" for row in rows)
        )
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    reading = Reading(template="Explain {{ word }}.")
    with Inputs([str(path)], SMALL, reading, selection=selection_of("1/2", "2", 5)) as source:
        lines = list(LineChecker(SMALL, LIMITS).check(source))
    prompts = [json.loads(line.body or "")["prompt"] for line in lines]
    assert prompts == [f"Explain w{place}." for place in Picker(selection_of("1/2", "2"), 6).take(range(6))]
    assert len(prompts) == 2


# no more than is needed


def test_what_comes_after_the_limit_is_not_read(tmp_path: Path) -> None:
    """Neither its lines, which may be damaged, nor a file of its own, which may be none of ours."""
    first, second = tmp_path / "a.gz", tmp_path / "b"
    first.write_bytes(gzip.compress(_lines([native(number) for number in range(20_000)]))[:-400])
    second.write_bytes(b"[")
    lines, _, _ = read(str(first), str(second), selection=selection_of(limit=5))
    assert len(lines) == 5
    with pytest.raises(InputError, match="damaged"):
        read(str(first), str(second), selection=selection_of(shard="1/2"))


@pytest.mark.parametrize(
    "selection", [selection_of("9/9"), selection_of("9/9", limit=5), selection_of(sample="0.0001%")]
)
def test_nothing_taken_is_an_error_that_says_so(tmp_path: Path, selection: Selection) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(_lines([native(0), native(1)]))
    with pytest.raises(
        InputError, match=r"in\.jsonl: none of its 2 requests is taken \(s.*; take more"
    ) as caught:
        read(str(path), selection=selection)
    assert "seed 0" in str(caught.value) or "shard 9/9" in str(caught.value)


def test_an_input_without_requests_is_as_without_a_selection(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n")
    for selection in (selection_of("1/2"), selection_of(sample="5")):
        lines, report, _ = read(str(path), selection=selection)
        assert (lines, report.num_lines) == ([], 0)


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """How many this process may have open for the test's duration."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = len(os.listdir("/proc/self/fd")) + 40  # noqa: PTH208  Path.iterdir keeps the folder open no longer either
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("selection", [Selection(), selection_of(sample="150"), selection_of(limit=3)])
def test_there_may_be_more_files_than_a_process_may_have_open(
    tmp_path: Path, few_descriptors: int, selection: Selection
) -> None:
    paths = []
    for number in range(few_descriptors + 50):
        path = tmp_path / f"{number:04}.jsonl"
        path.write_bytes(_lines([native(number)]))
        paths.append(str(path))
    lines, _, _ = read(*paths, selection=selection)
    assert ids(lines) == expected(selection, len(paths))
