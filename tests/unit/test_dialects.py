"""Every dialect becomes the card's lines; what is bad in it is named by file, line and path."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest

from db.errors import InputError, SettingsError
from db.states import InputFormat
from jobs.cards import Card, find_card
from jobs.dialects.detection import detect
from jobs.dialects.inputs import Inputs
from jobs.dialects.reading import Reading, reading_of
from jobs.reader import LineLimits, combine_hashes, hash_inputs
from jobs.validation import LineChecker, Report, validate

EXAMPLES = Path(__file__).parents[1] / "dialects"
LIMITS = LineLimits(1024 * 1024, 100)
SMALL = find_card(Path("no-home"), "smollm2-135m-instruct")
GIVEN = Reading(is_model_given=True)
Found = tuple[list[Any], Report, Inputs]


def read(*paths: Path, reading: Reading = GIVEN, limits: LineLimits = LIMITS, **more: Any) -> Found:
    """Every line's native body or (path, message) of its first problem; the report; the input."""
    with Inputs([str(path) for path in paths], SMALL, reading) as source:
        checker = LineChecker(SMALL, limits, **more)
        lines = [
            orjson.loads(line.body) if line.body else (line.problems[0].path, line.problems[0].message)
            for line in checker.check(source)
        ]
        checker.report.notes += source.notes
        assert source.sha256 == hash_inputs([str(path) for path in paths], reading.mapping)
        return lines, checker.report, source


def put(folder: Path, text: str | bytes, name: str = "in") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def chat(**body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hi"}]
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    return {**line, "body": {"messages": messages, **body}}


def of_openai(folder: Path, *lines: Any, reading: Reading = GIVEN) -> Found:
    return read(put(folder, "\n".join(map(json.dumps, lines))), reading=reading)


# found out by how a file begins


@pytest.mark.parametrize(
    ("name", "kind", "num_lines"),
    [
        ("card.jsonl", InputFormat.CARD, 5),
        ("openai.jsonl", InputFormat.OPENAI, 2),
        ("openai_parts.jsonl", InputFormat.OPENAI, 5),
        ("cloudflare.json", InputFormat.CLOUDFLARE, 2),
        ("array.json", InputFormat.ARRAY, 5),
        ("prompts.csv", InputFormat.CSV, 5),
        ("prompts.parquet", InputFormat.PARQUET, 5),
    ],
)
@pytest.mark.parametrize("is_packed", [False, True])
def test_an_example_is_found_out_whatever_its_name_and_is_good(
    tmp_path: Path, name: str, kind: InputFormat, num_lines: int, *, is_packed: bool
) -> None:
    content = (EXAMPLES / name).read_bytes()
    lines, report, source = read(put(tmp_path, gzip.compress(content) if is_packed else content))
    assert report.errors == []
    assert len(lines) == num_lines
    assert source.input_format is kind


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b'{"prompt": "x"}\n', "card"),
        (b'{"requests": [], "prompt": "x"}', "card"),
        (b"not json\n{", "card"),
        (b"[1]\n[2]\n", "card"),
        (b"", "card"),
        (b'[{"prompt": "x"}]\n', "array"),
        (b'\n [\n{"prompt"', "array"),
        (b'{"stream": false,\n "requests": [{"body": 1}', "cloudflare"),
        (b'{"custom_id": "a", "url": "/", "body": {"messages": ["' + b"x" * 70_000, "openai"),
        (b'{"messages": [{"content": "\\"requests\\": ' + b"x" * 70_000, "card"),
        (b"a;prompt\n1;2\n", "csv"),
        (b"a\rb,prompt", "card"),
    ],
)
def test_a_beginning_says_the_dialect(head: bytes, kind: str) -> None:
    assert detect(head, "in", is_mapped=False) == kind


def test_a_table_without_request_columns_is_known_by_its_name_or_by_a_template() -> None:
    assert detect(b"a,b\n", "x.csv.gz", is_mapped=False) is InputFormat.CSV
    assert detect(b"a,b\n", "stdin", is_mapped=True) is InputFormat.CSV
    assert detect(b"a,b\n", "x.jsonl", is_mapped=True) is InputFormat.CARD


def test_a_forced_dialect_is_not_looked_for(tmp_path: Path) -> None:
    path = put(tmp_path, '{"prompt": "x"}')
    lines, _, _ = read(path, reading=Reading(InputFormat.OPENAI, is_model_given=True))
    assert "it is no OpenAI Batch line" in lines[0][1]


# a card's own lines


@pytest.mark.parametrize(
    ("fields", "custom_id", "others"),
    [
        ({"external_reference": "r"}, "r", []),
        ({"id": 7}, "7", []),
        ({"external_reference": "r", "id": "i"}, "r", ["id"]),
        ({"custom_id": "c", "id": "i"}, "c", ["id"]),
        ({"custom_id": None, "id": "i"}, "i", []),
        ({"external_reference": None, "id": "i"}, "i", []),
    ],
)
def test_the_first_of_three_names_is_the_custom_id_and_the_others_are_warned_of(
    tmp_path: Path, fields: dict[str, Any], custom_id: str, others: list[str]
) -> None:
    (line,), report, _ = read(put(tmp_path, json.dumps({"prompt": "x", **fields})))
    assert line["custom_id"] == custom_id
    assert [warning.field for warning in report.warnings] == others


# OpenAI's lines


def test_openais_body_is_lifted_up_and_what_means_nothing_goes() -> None:
    lines, report, _ = read(EXAMPLES / "openai_parts.jsonl")
    assert lines[0] == {
        "messages": [
            {"role": "system", "content": "Answer with a number."},
            {"role": "user", "content": "What is\n2 + 2?"},
        ],
        "temperature": 0,
        "max_tokens": 16,
        "n": 1,
        "metadata": {"set": "sums"},
        "custom_id": "sum",
    }
    assert lines[1]["messages"][1] == {"role": "assistant", "content": ""}
    assert lines[2] == {"prompt": "Once upon a time", "max_tokens": 20, "raw": True, "custom_id": "story"}
    assert lines[3]["prompt"] == "The capital of France is"
    assert report.warnings == []
    assert [note.partition(" (")[0] for note in report.notes] == ["5 lines name another model"]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"functions": [{"name": "f"}]}, "body.functions"),
        ({"stream": True}, "body.stream"),
        ({"logit_bias": {"50256": -100}}, "body.logit_bias"),
        ({"made_up": 1}, "body.made_up"),
        ({"prompt": "x"}, "body.prompt"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "body.max_completion_tokens"),
        ({"messages": "x"}, "body.messages"),
        ({"messages": None}, "body.messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "body.messages[0].content[0].type",
        ),
        ({"messages": [{"content": "x"}]}, "body.messages[0]"),
        ({"temperature": 9}, "body.temperature"),
        ({"model": 5}, "body.model"),
    ],
)
def test_what_is_not_supported_is_named_by_its_path_and_keeps_its_custom_id(
    tmp_path: Path, body: dict[str, Any], path: str
) -> None:
    _, report, _ = of_openai(tmp_path, chat(), {**chat(**body), "custom_id": "b"})
    assert [(error.line, error.path) for error in report.errors] == [(2, path)]


def test_what_the_engine_can_do_goes_through_as_it_is(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]
    body = {"n": 2, "temperature": 0.5, "logprobs": True, "top_k": 5, "seed": 1}
    asked = {"tools": tools, "tool_choice": "auto", "parallel_tool_calls": True}
    lines, report, _ = of_openai(tmp_path, chat(**body), {**chat(**asked), "custom_id": "b"})
    assert report.errors == []
    assert body.items() <= lines[0].items()
    assert lines[1]["tools"] == tools
    assert "parallel_tool_calls" not in lines[1]


def test_openais_single_completion_is_kept_before_the_job_s_n(tmp_path: Path) -> None:
    lines, report, _ = of_openai(tmp_path, chat(n=1))
    assert (lines[0]["n"], report.warnings) == (1, [])


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ({**chat(), "url": "/v1/embeddings"}, "url"),
        ({**chat(), "method": "GET"}, "method"),
        ({**chat(), "body": 5}, "body"),
        ({**chat(), "custom_id": 5}, "custom_id"),
        ({"custom_id": "b", "prompt": "x"}, ""),
    ],
)
def test_a_line_that_is_not_as_openais_is_a_bad_one(tmp_path: Path, line: Any, path: str) -> None:
    _, report, _ = of_openai(tmp_path, {**chat(), "custom_id": "first"}, line)
    assert [(error.line, error.path) for error in report.errors] == [(2, path)]


@pytest.mark.parametrize("model", ["smollm2-135m-instruct", SMALL.full_name, SMALL.id, SMALL.hub_id])
def test_the_cards_own_names_are_its_model(tmp_path: Path, model: str) -> None:
    _, report, _ = of_openai(tmp_path, chat(model=model), reading=Reading())
    assert report.errors == []
    assert report.notes == []


def test_another_model_is_refused_unless_the_command_line_names_the_card(tmp_path: Path) -> None:
    (line,), _, _ = of_openai(tmp_path, chat(model="gpt-4o"), reading=Reading())
    assert line[0] == "body.model"
    assert "--model smollm2-135m-instruct" in line[1]


# one document


ELEMENTS = [{"custom_id": str(n), "prompt": 'x}],{"[\\' * (n % 7), "stop": [["]"][0]]} for n in range(2_000)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("is_cloudflare", [False, True])
def test_a_document_is_taken_apart_wherever_its_pieces_end(
    tmp_path: Path, indent: int | None, *, is_cloudflare: bool
) -> None:
    document = {"requests": ELEMENTS} if is_cloudflare else ELEMENTS
    lines, _, _ = read(put(tmp_path, json.dumps(document, indent=indent)))
    assert lines == ELEMENTS


def test_a_bad_element_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    text = '[{"prompt": "a"}, {"prompt": 5}, 7, "x", {"prompt" "b"}, {"prompt": "' + "y" * 3_000
    text += '\\"}{"}, {"prompt": "c"}]'
    lines, report, source = read(put(tmp_path, text), limits=LineLimits(2_048, 100))
    assert [error.line for error in report.errors] == [2, 3, 4, 5, 6]
    assert lines[6] == {"prompt": "c"}
    assert str(source.place(2)) == "element 2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"prompt": "a"}', "ends within or after element"),
        ('[{"prompt": "a"}, {"prompt": "b', "ends within or after element"),
        ('[{"prompt": "a"} {"prompt": "b"}]', ", is expected"),
        ('[{"prompt": "a"}] []', "more follows"),
        ('{"requests": 5}', r"\[ is expected"),
        ('{"request": []}', 'has no "requests"'),
    ],
)
def test_a_broken_document_says_where(tmp_path: Path, text: str, message: str) -> None:
    kind = InputFormat.ARRAY if text.startswith("[") else InputFormat.CLOUDFLARE
    with pytest.raises(InputError, match=message):
        read(put(tmp_path, text), reading=Reading(kind))


def test_a_document_is_read_in_bounded_memory(tmp_path: Path) -> None:
    element = json.dumps({"prompt": "word " * 100}).encode()
    path = put(tmp_path, b'{"requests": [' + b",".join([element] * 20_000) + b"]}")
    tracemalloc.start()
    try:
        with Inputs([str(path)], SMALL) as source:
            assert sum(map(len, source.blocks(LIMITS.max_bytes))) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 3_000_000 < path.stat().st_size
    finally:
        tracemalloc.stop()


# tables


def test_csv_columns_named_like_request_fields_are_those() -> None:
    lines, _, _ = read(EXAMPLES / "prompts.csv")
    first = {"custom_id": "1", "prompt": "What is the capital of France?", "max_tokens": 16, "temperature": 0}
    assert lines[0] == first
    assert lines[1]["stop"] == "."
    assert lines[2] == {"custom_id": "3", "prompt": 'Say "three".'}
    assert lines[3]["stop"] == [",", ";"]


def test_parquet_types_are_kept_and_nulls_are_not_given() -> None:
    lines, _, _ = read(EXAMPLES / "prompts.parquet")
    assert lines[2] == {
        "custom_id": "p3",
        "messages": [{"role": "user", "content": "Say three."}],
        "max_tokens": 16,
    }


@pytest.mark.parametrize(
    "template", [str(EXAMPLES / "template.jinja"), "{{ question }}\nAnswer in {{ language }}."]
)
def test_a_template_makes_prompts_of_columns(template: str) -> None:
    lines, report, _ = read(EXAMPLES / "questions.csv", reading=reading_of(template=template))
    assert lines[0] == {"custom_id": "a", "prompt": "Where is the Louvre?\nAnswer in French."}
    assert report.notes == []


def test_a_template_makes_prompts_of_json_fields_too(tmp_path: Path) -> None:
    path = put(
        tmp_path, '{"id": 1, "q": {"text": "why"}, "label": 3, "max_tokens": 5}\n{"id": 2, "label": 4}'
    )
    lines, report, _ = read(path, reading=reading_of(template="Say {{ q.text }}"))
    assert lines[0] == {"custom_id": "1", "prompt": "Say why", "max_tokens": 5}
    assert lines[1] == ("", "the template asks for q, which is missing or empty")
    assert len(report.notes) == 1
    assert report.notes[0].endswith("without effect: label")


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{{ a.b.c }}", "{{ 1 / 0 }}", "{% for i in range(10**9) %}{% endfor %}"],
)
def test_a_template_cannot_leave_its_sandbox_and_fails_its_row_alone(tmp_path: Path, template: str) -> None:
    lines, _, _ = read(
        put(tmp_path, "a,b\nx,y\n", "in.csv"), reading=reading_of(template="{{ a }}{{ b }}" + template)
    )
    assert lines[0][1].startswith("the template ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "{{ a"}, "line 1"),
        ({"template": "none.jinja"}, "cannot read the template"),
        ({"template": "{{ a }}", "prompt_column": "a"}, "exclude each other"),
        ({"input_format": "openai", "prompt_column": "a"}, "requests already"),
    ],
)
def test_options_that_cannot_be_are_refused_before_a_file_is_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        read(put(tmp_path, "a\n1\n"), reading=reading_of(**options))


@pytest.mark.parametrize(
    ("column", "message"), [(None, "--prompt-column"), ("b", "no column b; there are: a")]
)
def test_a_table_without_the_column_says_which_it_has(
    tmp_path: Path, column: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(put(tmp_path, "a\n1\n", "in.csv"), reading=Reading(prompt_column=column))


def test_columns_without_effect_are_warned_of_once_or_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "prompt,temprature\na,1\nb,2\n", "in.csv")
    assert read(path)[1].notes == [f"{path}: without effect: temprature"]
    with pytest.raises(InputError, match="--strict refuses columns without effect: temprature"):
        validate(SMALL, str(path), LIMITS, strict=True)


def test_a_prompt_that_grows_over_a_lines_length_is_a_bad_one(tmp_path: Path) -> None:
    path = put(tmp_path, "a\nx\n", "in.csv")
    reading = reading_of(template="{{ a * 3000 }}")
    lines, _, _ = read(path, reading=reading, limits=LineLimits(2_048, 100))
    assert "longer than max_line_bytes" in lines[0][1]


def test_bad_rows_are_named_by_the_line_they_begin_in(tmp_path: Path) -> None:
    long = b"y" * 3_000
    content = b'prompt;max_tokens\n"a\nb";5\nc;d;e\n\xff;1\n' + long + b";1\nf;0\ng;1\n"
    lines, report, _ = read(put(tmp_path, content), limits=LineLimits(2_048, 100))
    assert [error.line for error in report.errors] == [4, 5, 6, 7]
    assert lines[0] == {"prompt": "a\nb", "max_tokens": 5}
    assert lines[-1] == {"prompt": "g", "max_tokens": 1}


# several files


def test_errors_of_several_files_name_file_and_line_and_their_ids_are_compared(tmp_path: Path) -> None:
    first = put(tmp_path, '{"custom_id": "a", "prompt": "x"}\n\n{"prompt": 5}\n', "a.jsonl")
    second = put(tmp_path, '[{"custom_id": "b", "prompt": "x"}, {"custom_id": "a", "prompt": "x"}]', "b.json")
    lines, report, source = read(first, second)
    assert [error.as_dict()["file"] for error in report.errors] == [str(first), str(second)]
    assert [error.line for error in report.errors] == [3, 2]
    assert report.errors[1].message == f"custom_id of {second}, element 2 stands in {first}, line 1 already"
    assert len(lines) == 4
    assert source.input_format is InputFormat.CARD


def test_one_files_hash_is_its_own_and_a_templates_text_changes_it(tmp_path: Path) -> None:
    path = put(tmp_path, "a\n1\n", "in.csv")
    plain = hash_inputs([str(path)])
    assert plain is not None
    assert hash_inputs([str(path)], ["template {{ a }}"]) not in (
        plain,
        hash_inputs([str(path)], ["template {{a}}"]),
    )
    assert hash_inputs([str(path)] * 2) == combine_hashes([plain, plain])


def test_stdin_may_be_given_once(card: Card) -> None:
    with pytest.raises(InputError, match="give - once"):
        validate(card, ["-", "-"], LIMITS)


@pytest.mark.parametrize(
    ("rows", "num_bad"),
    [('"open\n' + "line\n" * 50, 1), ('"left"open\nnext\n', 1), ('fine\n"two\nlines"\n', 0)],
    ids=["open to the end", "text behind a quote", "a row of two lines"],
)
def test_a_quote_that_is_wrong_is_a_bad_row_and_swallows_none_unsaid(
    tmp_path: Path, rows: str, num_bad: int
) -> None:
    lines, report, _ = read(put(tmp_path, "prompt\n" + rows, "in.csv"))
    assert report.num_invalid == num_bad
    if num_bad:
        assert "is a quote left open?" in lines[0][1]
