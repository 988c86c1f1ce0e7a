"""Every error that a user can cause, caused, with its whole text: what, where, and what to do next.

A case is one line: the command, with variables before it as in a shell; the exit code; the text. {queued}, {done},
{here} and {home} stand for jobs and folders of tests/erring.py, … for what differs from machine to machine. Before the
text of a wrong option click shows the command's usage.
"""

import pytest
from erring import Case, Cause

_NO_FILE = "No such file or directory; check the path"
_NO_JOB = "promptmill list shows the jobs there are"
_ONE_FILE = "Mend them, or run the good ones with --on-invalid skip"
_BELOW_A_FILE = "Not a directory; a part of the path is a file: check the path"
_LIVE = "this needs it to be cancelled or completed or expired"
_STOP = "promptmill wait {queued} waits for its end, promptmill cancel {queued} stops it"
_DURATION = "give a whole number and a unit: 90s, 45m, 24h or 30d"

INPUTS: list[Case] = [
    ("submit none.jsonl", 3, f"cannot read none.jsonl: {_NO_FILE}"),
    ("submit good.jsonl none.jsonl", 3, f"cannot read none.jsonl: {_NO_FILE}"),
    ("submit good.jsonl/x", 3, f"cannot read good.jsonl/x: {_BELOW_A_FILE}"),
    ("submit folder", 3, "folder is a folder; give its files, by a pattern like 'folder/*.jsonl'"),
    ("submit empty.jsonl", 3, "empty.jsonl has no requests: give one JSON object a line"),
    ("submit - -", 3, "stdin can be read once only; give - once"),
    ("submit -", 3, "stdin has no requests: give one JSON object a line"),
    (
        "submit damaged.gz",
        3,
        "damaged.gz: the compressed data is damaged or cut off after line 0; make the file again",
    ),
    (
        "submit bad.jsonl",
        3,
        'line 2: prompt: the value is not of type "string" (invalid_request)\n'
        f"error: bad.jsonl: 1 of 2 lines are bad; nothing was stored. {_ONE_FILE}",
    ),
    (
        "submit noise",
        3,
        "line 1: not UTF-8 text at byte 1 (invalid_json)\n"
        f"error: noise: 1 of 1 lines are bad; nothing was stored. {_ONE_FILE}",
    ),
    (
        "submit table.csv",
        3,
        "table.csv: there is neither a column prompt nor messages. Say which it is with --prompt-column or"
        " --messages-column, or make prompts with --template; its columns: a, b",
    ),
    ("submit table.csv --prompt-column c", 3, "table.csv: there is no column c; there are: a, b"),
    (
        "submit table.csv --template '{{{{ c }}}}'",
        3,
        "table.csv: there is no column c, which the template names; there are: a, b",
    ),
    (
        "submit table.csv --template none.txt",
        2,
        "cannot read the template none.txt: No such file or directory; give a file, or text with {{{{ column }}}}"
        " in it",
    ),
    (
        "submit table.csv --template '{{{{ c'",
        2,
        "--template, line 1: unexpected end of template, expected 'end of print statement'.",
    ),
    (
        "submit table.csv --template a --prompt-column b",
        2,
        "--template, --prompt-column and --messages-column exclude each other; give one",
    ),
    (
        "submit good.jsonl --format openai --prompt-column b",
        2,
        "OpenAI's lines are requests already: no template and no column makes them",
    ),
    (
        "submit good.jsonl --format parquet",
        3,
        "good.jsonl: the Parquet data is damaged after row 0 (ArrowInvalid); make the file again",
    ),
    ("run none.jsonl", 3, f"cannot read none.jsonl: {_NO_FILE}"),
    ("validate none.jsonl", 3, f"cannot read none.jsonl: {_NO_FILE}"),
    (
        "validate empty.jsonl",
        3,
        "0 lines: 0 valid, 0 bad\na file without requests is refused: give one JSON object a line",
    ),
    (
        "verify {done} --input none.jsonl",
        3,
        "cannot read none.jsonl, or it is no regular file; check the path",
    ),
    ("verify {done} --output none.jsonl", 3, f"cannot read none.jsonl: {_NO_FILE}"),
    (
        "verify {done} --input empty.jsonl",
        5,
        "empty.jsonl: not what was submitted as in.jsonl: its SHA-256 is e3b0c44298fc…, that of the job's input"
        " …; give the files of that submit, in their order",
    ),
    ("verify {done} --output empty.jsonl", 5, "empty.jsonl: line 1 is missing, the outcome of index 0"),
]

OPTIONS: list[Case] = [
    ("nonsense", 2, "No such command 'nonsense'."),
    ("status", 2, "Missing argument 'JOB...'."),
    ("list --limit 0", 2, "Invalid value for '--limit': 0 is not in the range 1<=x<=10000."),
    (
        "list --state running",
        2,
        "Invalid value for --state: running is not a state; there are: queued, in_progress, cancelling, completed,"
        " cancelled, expired",
    ),
    (
        "wait {queued} --max-failed x",
        2,
        "Invalid value for '--max-failed': give a number of requests, like 5, or a share, like 1%",
    ),
    ("run good.jsonl --timeout 5", 2, f"Invalid value for '--timeout': {_DURATION}"),
    ("prune --older-than x", 2, f"Invalid value for '--older-than': {_DURATION}"),
    ("prune", 2, "Missing option '--older-than'."),
    (
        "submit good.jsonl --once --idempotency-key k",
        2,
        "--once and --idempotency-key are two ways to say one thing; give one",
    ),
    ("submit good.jsonl --top-p 5", 2, "--top-p: Input should be less than or equal to 1"),
    (
        "submit good.jsonl --max-tokens 99999",
        2,
        "--max-tokens 99,999 leaves no room for a prompt in max_total_tokens (4,096); give fewer",
    ),
    ("worker --engine-arg x", 2, "an engine argument is given as key=value, like max_num_seqs=128"),
    ("run good.jsonl --engine-arg a=1 --engine-arg a=2", 2, "engine argument a is given twice"),
    (
        "results {done} --fields a",
        2,
        "--fields: a is no field of a result line; there are index, custom_id, status, result, finish_reason, usage,"
        " error, reused_from, position, finished_at, request, params, job, and what is in them, like result.response",
    ),
    (
        "results {done} --follow --order input",
        2,
        "--follow and --from give results in the order in which they finish, not --order input",
    ),
    (
        "results {done} --format openai --with-input",
        2,
        "the format openai has no room for --fields, --with-input or --with-params; jsonl, csv, parquet have",
    ),
    (
        "results {done} --follow --format parquet",
        2,
        "--follow writes line by line, and parquet has no lines; jsonl, openai, csv have",
    ),
    (
        "results {done} --errors-output x",
        2,
        "only the format openai has a file for errors, not jsonl; see --only",
    ),
    (
        "compare {done} {done} --tolerance x",
        2,
        "--tolerance x: give a share of the requests from 0 to 1, like 1% or 0.01",
    ),
    (
        "compare {done} {done} --html - --json",
        2,
        "two reports would go to one place; give each a file of its own",
    ),
    (
        "completion powershell",
        2,
        "Invalid value for '{{bash|zsh|fish}}': 'powershell' is not one of 'bash', 'zsh', 'fish'.",
    ),
]

JOBS: list[Case] = [
    ("status job_nobody", 4, f"there is no job job_nobody; {_NO_JOB}"),
    ("status ''", 4, f"there is no job ''; {_NO_JOB}"),
    ("manifest job_nobody", 4, f"there is no job job_nobody; {_NO_JOB}"),
    ("compare {done} job_nobody", 4, f"there is no job job_nobody; {_NO_JOB}"),
    ("status job_", 4, "job_ is the beginning of several jobs: {both}; give more of the id"),
    (
        "results {queued}",
        5,
        f"job {{queued}} is queued; {_LIVE}; promptmill wait {{queued}} waits for it, --partial takes what is finished"
        " by now",
    ),
    ("verify {queued}", 5, f"job {{queued}} is queued; {_LIVE}; {_STOP}"),
    ("delete {queued}", 5, f"job {{queued}} is queued; {_LIVE}; {_STOP}"),
    (
        "cancel {done}",
        5,
        "job {done} is completed; this needs it to be in_progress or queued; it is over: nothing to do",
    ),
    ("wait {queued} --timeout 0", 8, "queued  0 of 1 requests\n{queued} is still queued after 0 s"),
]

OUTPUTS: list[Case] = [
    ("results {done} -o folder", 1, "{here}/folder is a folder; give the name of a file"),
    ("results {done} -o good.jsonl/x", 1, f"cannot write {{here}}/good.jsonl/x: {_BELOW_A_FILE}"),
    ("results {done} -o good.jsonl/x/y", 1, f"cannot write {{here}}/good.jsonl/x/y: {_BELOW_A_FILE}"),
    ("results {done} -o loop", 1, "loop is a symbolic link that leads back to itself; give another file"),
    (
        "results {done} --follow -o good.jsonl",
        1,
        "good.jsonl is there already; --from POSITION goes on with it, or give another file",
    ),
    (
        "results {done} --format openai -o out --errors-output out",
        1,
        "out is where the results go; give the errors another file",
    ),
    ("run good.jsonl -o folder", 1, "{here}/folder is a folder; give the name of a file"),
    ("compare {done} {done} --html folder", 1, "{here}/folder is a folder; give the name of a file"),
    ("validate bad.jsonl --errors folder", 1, "cannot write folder: Is a directory; give a file"),
    ("validate bad.jsonl --errors good.jsonl/x", 1, f"cannot write good.jsonl/x: {_BELOW_A_FILE}"),
    ("submit bad.jsonl --errors bad.jsonl", 1, "bad.jsonl is the input; give the errors another file"),
]


@pytest.mark.parametrize(("command", "code", "text"), [*INPUTS, *OPTIONS, *JOBS, *OUTPUTS])
def test_the_text_says_what_and_where_and_what_to_do(
    cause: Cause, command: str, code: int, text: str
) -> None:
    cause(command, code, text)
