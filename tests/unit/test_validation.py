"""Checking a file: every bad line is found and named, nothing in a file can break the check, and memory is bounded."""

import json
import stat
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from db.errors import InputError, OutputError
from jobs.cards import Card, find_card
from jobs.reader import InputFile, LineLimits
from jobs.validation import CheckedLine, FieldWarning, LineChecker, Report, validate

LIMITS = LineLimits(max_bytes=1024 * 1024, max_depth=50)
GOOD = {"prompt": "x"}


def check(card: Card, path: Path, **options: Any) -> Report:
    return validate(card, str(path), LIMITS, **options)


def lines_of(card: Card, path: Path, **options: Any) -> list[CheckedLine]:
    with InputFile(str(path)) as source:
        return list(LineChecker(card, LIMITS, **options).check(source))


def errors_of(report: Report) -> list[tuple[int, str, str]]:
    return [(error.line, error.code, error.path) for error in report.errors]


def only_error(card: Card, path: Path) -> tuple[str, str, str]:
    report = check(card, path)
    assert (report.num_lines, report.num_invalid, len(report.errors)) == (1, 1, 1)
    error = report.errors[0]
    assert error.line == 1
    return error.code, error.path, error.message


def fields_of(warning: FieldWarning) -> dict[str, Any]:
    return {name: value for name, value in warning.as_dict().items() if name != "message"}


# counts and reports


def test_a_good_file_is_valid(card: Card, write: Any) -> None:
    report = check(card, write(GOOD, {"messages": [{"role": "user", "content": "hi"}]}, GOOD))
    assert report.is_valid
    assert report.as_dict() == {
        "lines": 3,
        "valid": 3,
        "invalid": 0,
        "tokens_checked": False,
        "errors": [],
        "warnings": [],
    }


def test_the_report_is_the_contract_s(card: Card, write: Any) -> None:
    report = check(card, write(GOOD, b"", {"prompt": 5}, {**GOOD, "temprature": 1}, b"{"))
    assert json.loads(json.dumps(report.as_dict())) == {
        "lines": 4,
        "valid": 2,
        "invalid": 2,
        "tokens_checked": False,
        "errors": [
            {
                "line": 3,
                "code": "invalid_request",
                "path": "prompt",
                "message": 'the value is not of type "string"',
            },
            {
                "line": 5,
                "code": "invalid_json",
                "path": "",
                "message": report.errors[1].message,
            },
        ],
        "warnings": [
            {
                "field": "temprature",
                "count": 1,
                "first_line": 4,
                "nearest": "temperature",
                "message": "unknown field temprature in 1 line, first in line 4: it has no effect;"
                " did you mean temperature?",
            }
        ],
    }


def test_a_line_with_several_problems_is_one_bad_line(card: Card, write: Any) -> None:
    report = check(card, write({**GOOD, "max_tokens": 0, "temperature": -1, "custom_id": 5}))
    assert (report.num_invalid, report.num_errors) == (1, 3)
    assert [path for _, _, path in errors_of(report)] == ["max_tokens", "temperature", "custom_id"]


def test_the_first_20_errors_are_shown_and_all_are_written(card: Card, write: Any, tmp_path: Path) -> None:
    written = tmp_path / "deep" / "down" / "bad.jsonl"
    report = check(card, write(*[{"prompt": number} for number in range(50)]), errors_path=str(written))
    assert (report.num_invalid, report.num_errors, len(report.errors)) == (50, 50, 20)
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert [line["line"] for line in lines] == list(range(1, 51))
    assert lines[:20] == [error.as_dict() for error in report.errors]
    assert all(set(line) == {"line", "code", "path", "message"} for line in lines)
    assert stat.S_IMODE(written.stat().st_mode) == 0o600


def test_an_errors_file_is_there_and_empty_when_all_is_well(card: Card, write: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("of the last time")
    check(card, write(GOOD), errors_path=str(tmp_path / "bad.jsonl"))
    assert (tmp_path / "bad.jsonl").read_text() == ""


def test_an_errors_file_that_cannot_be_written_is_an_error(card: Card, write: Any, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*: Is a directory"):
        check(card, write(GOOD), errors_path=str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\n\n \r\n", b"\xef\xbb\xbf"])
def test_a_file_without_requests_is_not_valid(card: Card, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    report = check(card, tmp_path / "in.jsonl")
    assert (report.num_lines, report.num_invalid, report.is_valid) == (0, 0, False)


def test_lines_keep_their_numbers_and_requests_their_index(card: Card, write: Any) -> None:
    checked = lines_of(card, write(b"", GOOD, b"", b"", {"prompt": 5}, GOOD))
    assert [(line.index, line.number, bool(line.problems)) for line in checked] == [
        (0, 2, False),
        (1, 5, True),
        (2, 6, False),
    ]


def test_the_body_is_the_line_s_own_text(card: Card, write: Any) -> None:
    text = '{ "prompt" : "ä\\u00e4" ,"custom_id":"a", "max_tokens": 2.56e2 }'
    (line,) = lines_of(card, write(b"  " + text.encode() + b" \r"))
    assert line.body == text


def test_a_line_s_tokens_are_estimated_and_never_more_than_the_card_allows(card: Card, write: Any) -> None:
    checked = lines_of(
        card,
        write(
            {"prompt": "x" * 400, "max_tokens": 100},
            GOOD,
            {**GOOD, "prompt": "x" * 4_000, "max_tokens": 4_095},
        ),
    )
    assert [line.num_tokens for line in checked] == [100 + 108, 256 + 3, 4096]


def test_a_line_s_tokens_are_those_of_all_its_completions(card: Card, write: Any) -> None:
    lines = write(GOOD, {**GOOD, "n": 2}, {**GOOD, "n": None}, {**GOOD, "n": 1, "temperature": 0})
    num_tokens = [line.num_tokens for line in lines_of(card, lines, sampling={"n": 4})]
    assert num_tokens == [4 * (256 + 3), 2 * (256 + 5), 4 * (256 + 6), 256 + 10]


def test_a_line_that_cannot_have_the_job_s_n_completions_is_bad(card: Card, write: Any) -> None:
    stream, greedy = {**GOOD, "stream": True}, {**GOOD, "temperature": 0}
    path = write(GOOD, stream, greedy, {**stream, "n": 1}, {**greedy, "n": 1}, {**GOOD, "stream": False})
    checked = lines_of(card, path, sampling={"n": 2})
    assert [[problem.path for problem in line.problems] for line in checked] == [[], ["n"], ["n"], [], [], []]
    assert not any(line.problems for line in lines_of(card, path, sampling={"n": 1}))


# bad lines


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"{'prompt': 'x'}",
        b'{"prompt": "x"} {"prompt": "y"}',
        b'{"prompt": "x",}',
        b"prompt",
        b"NaN",
        b'{"prompt": "x", "max_tokens": Infinity}',
        b'{"prompt": "x", "max_tokens": 1e400}',
        b'{"prompt": "x", "max_tokens": 1' + b"0" * 400 + b"}",
        b'{"prompt": "x", "max_tokens": 007}',
        b'{"prompt": "a\0b"}',
        b"\0\0\0\0",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\udc00\\ud800"}',
        b'{"prompt": "a\xffb"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'\xff\xfe{\x00"\x00',
    ],
    ids=lambda line: repr(line)[:30],
)
def test_what_is_no_json_is_invalid_json(card: Card, write: Any, line: bytes) -> None:
    code, path, message = only_error(card, write(line))
    assert (code, path) == ("invalid_json", "")
    assert message.startswith("not ")


def test_bytes_that_are_not_utf8_are_named(card: Card, write: Any) -> None:
    assert only_error(card, write(b'{"prompt": "a\xffb"}'))[2] == "not UTF-8 text at byte 14"


def test_a_list_among_lines_is_one_of_them(card: Card, write: Any) -> None:
    report = check(card, write(GOOD, b"[]", b'["prompt", "x"]'))
    assert [(error.line, error.code) for error in report.errors] == [
        (2, "invalid_request"),
        (3, "invalid_request"),
    ]


@pytest.mark.parametrize("line", [b"5", b'"x"', b"null", b"true"])
def test_what_is_no_object_is_an_invalid_request(card: Card, write: Any, line: bytes) -> None:
    code, path, message = only_error(card, write(line))
    assert (code, path) == ("invalid_request", "")
    assert message.startswith("a request is a JSON object, not ")


@pytest.mark.parametrize("depth", [51, 500, 1_500, 100_000])
@pytest.mark.parametrize(
    "before", ['{"prompt": ', '{"prompt": "x", "meta": ', '{"messages": ', "", "{not json: "]
)
def test_a_line_that_is_nested_too_deeply_names_the_limit(
    card: Card, write: Any, before: str, depth: int
) -> None:
    deep = "[" * depth + "]" * depth if depth % 2 else '{"a": ' * depth + "1" + "}" * depth
    report = check(card, write(GOOD, (before + deep + "}" * before.count("{")).encode(), GOOD))
    assert errors_of(report) == [(2, "line_limit_exceeded", "")]
    assert report.errors[0].message == "it is nested more deeply than max_line_depth (50)"


def test_a_line_may_be_as_deep_as_the_limit(card: Card, write: Any) -> None:
    deep = b"[" * 49 + b"]" * 49
    assert check(card, write(b'{"prompt": "x", "meta": ' + deep + b"}")).is_valid


def test_brackets_side_by_side_and_in_texts_are_not_depth(card: Card, write: Any) -> None:
    beside = b"[" + b",".join([b"{}"] * 200) + b"]"
    assert check(
        card, write({"prompt": "[{" * 500 + '"\\' + "[" * 100}, b'{"prompt": "x", "m": ' + beside + b"}")
    ).is_valid


def test_a_line_that_is_too_long_is_bad_and_the_others_are_not(card: Card, write: Any) -> None:
    report = validate(card, str(write(GOOD, {"prompt": "x" * 3_000}, GOOD)), replace(LIMITS, max_bytes=2_048))
    assert (report.num_lines, errors_of(report)) == (3, [(2, "line_limit_exceeded", "")])
    assert report.errors[0].message == "the line is longer than max_line_bytes (2,048)"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1e300}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1e6}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": 2**31}, "top_k"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a", 5]}, "stop"),
        ({"stop": {}}, "stop"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": -1}, "repetition_penalty"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"custom_id": 5}, "custom_id"),
        ({"custom_id": ["a"]}, "custom_id"),
        ({"custom_id": "x" * 513}, "custom_id"),
        ({"custom_id": "a\0b"}, "custom_id"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_field_out_of_its_range_is_named(card: Card, write: Any, fields: dict[str, Any], path: str) -> None:
    code, found, message = only_error(card, write({**GOOD, **fields}))
    assert (code, found) == ("invalid_custom_id" if path == "custom_id" else "invalid_parameter", path)
    assert message


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 1},
        {"max_tokens": 256.0},
        {"max_tokens": 4_095},
        {"temperature": 0},
        {"temperature": 2.0},
        {"top_p": 1},
        {"top_k": -1},
        {"top_k": 0},
        {"min_p": 0},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"stop": "###"},
        {"stop": []},
        {"stop": ["a"] * 64},
        {"repetition_penalty": 1.1},
        {"frequency_penalty": -2, "presence_penalty": 2},
        {"temperature": None, "seed": None, "stop": None},
        {"custom_id": None},
        {"custom_id": ""},
        {"custom_id": "x" * 512},
        {"custom_id": "😀\n\t"},
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_field_at_the_edge_of_its_range_is_good(card: Card, write: Any, fields: dict[str, Any]) -> None:
    report = check(card, write({**GOOD, **fields}))
    assert (report.is_valid, report.warnings) == (True, [])


# custom ids


def test_a_custom_id_that_stands_twice_is_named_with_both_lines(card: Card, write: Any) -> None:
    report = check(card, write({**GOOD, "custom_id": "a"}, b"", GOOD, {**GOOD, "custom_id": "a"}))
    assert errors_of(report) == [(4, "duplicate_custom_id", "custom_id")]
    assert report.errors[0].message == "custom_id of line 4 stands in line 1 already"


def test_of_three_the_second_and_the_third_are_bad(card: Card, write: Any) -> None:
    report = check(card, write(*[{**GOOD, "custom_id": "a"}] * 3))
    assert [(error.line, "line 1 " in error.message) for error in report.errors] == [(2, True), (3, True)]


def test_a_custom_id_of_a_bad_line_is_taken_too(card: Card, write: Any) -> None:
    checked = lines_of(card, write({"prompt": 5, "custom_id": "a"}, {**GOOD, "custom_id": "a"}))
    assert [line.custom_id for line in checked] == ["a", None], "its failed result can be told by it"
    assert checked[1].problems[0].code == "duplicate_custom_id"


def test_no_custom_id_is_never_a_duplicate(card: Card, write: Any) -> None:
    assert check(card, write(GOOD, GOOD, {**GOOD, "custom_id": None}, {**GOOD, "custom_id": None})).is_valid


def test_an_empty_custom_id_is_one(card: Card, write: Any) -> None:
    report = check(card, write({**GOOD, "custom_id": ""}, {**GOOD, "custom_id": ""}))
    assert errors_of(report) == [(2, "duplicate_custom_id", "custom_id")]


def test_custom_ids_differ_by_case_and_by_form(card: Card, write: Any) -> None:
    ids = ["a", "A", "a ", "é", "e\u0301", "1", "01"]
    assert check(card, write(*[{**GOOD, "custom_id": id_} for id_ in ids])).is_valid


# unknown fields


def test_an_unknown_field_is_warned_of_once_with_its_count(card: Card, write: Any) -> None:
    report = check(card, write(GOOD, {**GOOD, "max_token": 5}, {**GOOD, "max_token": 5, "qwerty": 1}))
    assert report.is_valid
    assert [fields_of(warning) for warning in report.warnings] == [
        {"field": "max_token", "count": 2, "first_line": 2, "nearest": "max_tokens"},
        {"field": "qwerty", "count": 1, "first_line": 3, "nearest": None},
    ]
    assert [warning.message for warning in report.warnings] == [
        "unknown field max_token in 2 lines, first in line 2: it has no effect; did you mean max_tokens?",
        "unknown field qwerty in 1 line, first in line 3: it has no effect",
    ]


def test_strict_refuses_unknown_fields_in_the_line_s_own_order(card: Card, write: Any) -> None:
    line = {**GOOD, "zeta": 1, "temprature": 1, "alpha": 1, "custom_id": "a", "seed": 7}
    report = check(card, write(GOOD, line), strict=True)
    assert {error.code for error in report.errors} == {"unknown_field"}
    assert [(error.line, error.path, error.message) for error in report.errors] == [
        (2, "zeta", "the card's schema has no such field"),
        (2, "temprature", "the card's schema has no such field; did you mean temperature?"),
        (2, "alpha", "the card's schema has no such field"),
    ]


def test_a_field_s_name_does_nothing_to_a_terminal(card: Card, write: Any) -> None:
    path = write({**GOOD, "a\x1b[2J\nerror: all is lost": 1, "y" * 5_000: 1})
    for strict in (False, True):
        report = check(card, path, strict=strict)
        text = "".join(
            [warning.message for warning in report.warnings] + [error.path for error in report.errors]
        )
        assert text.isprintable()
        assert len(text) < 1_000


def test_fields_of_ever_new_names_are_counted_together_after_the_first_hundred(
    card: Card, write: Any
) -> None:
    report = check(card, write(*[{**GOOD, f"field {number}": 1} for number in range(250)]))
    assert len(report.warnings) == 101
    assert fields_of(report.warnings[-1]) == {
        "field": "(others)",
        "count": 150,
        "first_line": 101,
        "nearest": None,
    }


# whatever the file


HERMES = find_card(Path("no-home"), "hermes-2-pro-mistral-7b")
fragments = st.sampled_from(
    [
        *(
            b"\n",
            b"\r\n",
            b"\0",
            b"\xff",
            b"\xef\xbb\xbf",
            b"\x1f\x8b\x08\0",
            b"\x28\xb5\x2f\xfd",
            b"\x50\x2a\x4d\x18",
        ),
        *(
            b"{",
            b"}",
            b"[",
            b'"',
            b":",
            b",",
            b"1e999",
            b"\\ud800",
            b'{"prompt":"x"}',
            b'"custom_id":"a"',
            b"{}" * 9,
        ),
    ]
)
contents = st.lists(st.binary(max_size=40) | fragments, max_size=12).map(b"".join)


@given(contents)
@hypothesis_settings(max_examples=300, deadline=None)
def test_no_bytes_at_all_make_the_check_raise_anything_but_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    try:
        report = validate(HERMES, str(path), LIMITS)
    except InputError as error:
        refusal, report = str(error), Report()
    else:
        refusal = ""
    assert refusal.startswith(f"{path}: " if refusal else "")
    assert report.num_valid + report.num_invalid == report.num_lines
    # of an array, elements
    assert report.num_lines <= content.count(b"\n") + content.count(b",") + 1


def test_memory_does_not_grow_with_the_file(card: Card, tmp_path: Path) -> None:
    """Not with its lines, its custom ids, its errors or its unknown fields."""
    path = tmp_path / "in.jsonl"
    with path.open("w") as file:
        for number in range(60_000):
            body = {"prompt": number if number % 3 == 0 else "x" * 100, "custom_id": f"{number:040}"}
            file.write(json.dumps({**body, f"unknown {number}": 1}) + "\n")
    tracemalloc.start()
    try:
        report = check(card, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (report.num_lines, report.num_invalid) == (60_000, 20_000)
    # 16 MiB of bits and up to 16 of the latest custom ids, whatever the file
    assert peak < 40 * 1024 * 1024
