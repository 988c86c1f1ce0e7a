"""What stands on a real terminal: a panel that moves, fits, and goes away; Ctrl-C; no colours where none are wanted."""

import json
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from samples import write_requests
from servers import Cli, MakeCli
from terminals import Terminal, plain, standing

from db import leases, queries, transitions
from db.database import Database
from db.leases import NewResult, Record
from db.transitions import Lease


@pytest.fixture
def database(home: Path) -> Database:
    return Database(f"sqlite:///{home / 'promptmill.db'}")


def submitted(cli: Cli, tmp_path: Path, num_requests: int = 40) -> str:
    source = write_requests(tmp_path / "in.jsonl", num_requests)
    return cli.run("submit", str(source), "--on-invalid", "skip", "--name", "nightly").stdout.strip()


def claim(database: Database, job_id: str) -> Lease:
    with database.write() as tx:
        transitions.register_worker(tx, "worker_here", "any", "echo", "gpu-1", 1)
    card_name = queries.get_job(database, job_id).card_name
    lease = leases.claim(database, "worker_here", card_name, 300.0, job_id)
    assert lease is not None
    return lease


def write_some(database: Database, lease: Lease, *, is_last: bool = False) -> None:
    """One request of the lease fails and another succeeds; or all that are left succeed."""
    indexes = [request.index for request in leases.load_requests(database, lease)]
    batch = [NewResult(index, '{"response": "yes"}', "stop", 3, 5) for index in indexes]
    if not is_last:
        batch = [batch[0], NewResult(indexes[1], error_code="engine_error", error_message="it broke")]
    leases.record(database, [Record(lease, batch, is_last)])


def test_run_draws_a_panel_and_leaves_a_summary(make_cli: MakeCli, tmp_path: Path) -> None:
    cli = make_cli(echo_latency_s=0.4)
    source = write_requests(tmp_path / "in.jsonl", 40)
    terminal = Terminal(cli, "run", str(source), "-o", str(tmp_path / "out.jsonl"), columns=100)
    terminal.wait_for("loading the engine")
    terminal.wait_for(r"in_progress[\s\S]*━[\s\S]*%[\s\S]*requests/s[\s\S]*running[\s\S]*worker_")
    assert terminal.end() == 0
    first, *rest = standing(terminal.text)
    assert re.fullmatch(r"job_\w+: 40 requests for smollm2-135m-instruct", first)
    assert re.match(r"job_\w+ completed in \d+s: 39 succeeded, 1 failed", rest[0])
    assert rest[-1] == f"results: {tmp_path / 'out.jsonl'}"
    assert "promptmill: job=" not in terminal.text, "that line is for logs"


def test_a_watched_job_is_shown_as_it_goes_on_and_fits_a_terminal_that_changes(
    make_cli: MakeCli, tmp_path: Path, database: Database
) -> None:
    cli = make_cli()
    job_id = submitted(cli, tmp_path)
    lease = claim(database, job_id)
    terminal = Terminal(cli, "status", job_id, "--watch")
    terminal.wait_for("worker_here  gpu-1")
    assert f"{job_id}  in_progress  nightly  smollm2-135m-instruct\r\n" in plain(terminal.text)
    write_some(database, lease)
    terminal.wait_for("failed      1 engine_error\r\n")
    terminal.resize(30, 24)
    terminal.wait_for(f"{job_id}  in_progress\r\n")
    terminal.text = ""
    terminal.wait_for("failed")
    assert all(cell_len(line) <= 30 for line in re.split(r"\r\n|\x1b\[\d+F\x1b\[J", plain(terminal.text)))
    terminal.resize(120, 24)
    terminal.wait_for("━" * 2 + ".{85}")
    terminal.text = ""
    write_some(database, lease, is_last=True)
    while (more := leases.claim(database, "worker_here", "smollm2-135m-instruct", 300.0, job_id)) is not None:
        write_some(database, more, is_last=True)
    assert terminal.end() == 0
    assert standing(terminal.text)[-9] == f"job       {job_id}  nightly"
    assert "state     completed" in standing(terminal.text)


def test_ctrl_c_ends_a_watch_and_takes_the_panel_away(
    make_cli: MakeCli, tmp_path: Path, database: Database
) -> None:
    cli = make_cli()
    job_id = submitted(cli, tmp_path)
    claim(database, job_id)
    for command in (("status", job_id, "--watch"), ("wait", job_id)):
        terminal = Terminal(cli, *command)
        terminal.wait_for("worker_here")
        terminal.press_ctrl_c()
        assert terminal.end() == 130
        assert standing(terminal.text) == ["interrupted"]
    assert json.loads(cli.run("status", job_id, "--json").stdout)["state"] == "in_progress"


def test_results_come_a_line_each_until_ctrl_c(make_cli: MakeCli, tmp_path: Path, database: Database) -> None:
    cli = make_cli()
    job_id = submitted(cli, tmp_path)
    lease = claim(database, job_id)
    write_some(database, lease)
    terminal = Terminal(cli, "tail", job_id, columns=60)
    terminal.wait_for("engine_error: it broke")
    write_some(database, lease)
    terminal.wait_for(r"(?m)^ 3  ")
    terminal.press_ctrl_c()
    assert terminal.end() == 130
    assert [line for line in standing(terminal.text) if cell_len(line) > 60] == []
    assert [line.split()[0] for line in standing(terminal.text)[:4]] == ["0", "1", "2", "3"]


def test_no_colours_where_none_are_wanted(make_cli: MakeCli, tmp_path: Path, database: Database) -> None:
    cli = make_cli()
    job_id = submitted(cli, tmp_path)
    write_some(database, claim(database, job_id))
    colour = re.compile(r"\x1b\[[\d;]*3\dm")
    for command in (("list",), ("errors", job_id), ("show", job_id, "0"), ("status", job_id, job_id)):
        coloured = Terminal(cli, *command)
        assert coloured.end() == 0
        assert colour.search(coloured.text), command
        for wish in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
            without = Terminal(cli, *command, environment=wish)
            assert without.end() == 0
            assert not colour.search(without.text), (command, wish)
            if "TERM" in wish:
                assert "\x1b" not in without.text
    watched = Terminal(cli, "status", job_id, "--watch", environment={"TERM": "dumb"})
    watched.wait_for("in_progress  ")
    watched.press_ctrl_c()
    assert watched.end() == 130
    assert "\x1b" not in watched.text


@pytest.mark.parametrize("columns", [40, 200])
def test_every_line_of_a_table_fits(make_cli: MakeCli, tmp_path: Path, columns: int) -> None:
    cli = make_cli()
    for number in range(3):
        source = write_requests(tmp_path / f"{number}.jsonl", 3)
        cli.run("submit", str(source), "--name", "日本" * 40)
    terminal = Terminal(cli, "list", columns=columns)
    assert terminal.end() == 0
    lines = standing(terminal.text)
    assert len(lines) == 4
    assert all(cell_len(line) <= columns for line in lines)
