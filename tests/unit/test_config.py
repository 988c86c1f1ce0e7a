"""`promptmill config`: every value with its source, and no secret in either form; what hides secrets."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cli
from jobs.redaction import hide_password
from jobs.settings import Settings

SECRET = "hunter2"  # noqa: S105  it stands for one


def shown() -> dict[str, dict[str, Any]]:
    done = CliRunner().invoke(cli.main, ["config", "--json"])
    assert (done.exit_code, done.stderr) == (0, "")
    return {setting["name"]: setting for setting in json.loads(done.stdout)}


def test_each_setting_is_shown_with_its_source(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "promptmill.toml").write_text("# nightly\n\nsweep_s = 7\n[engine_args]\ndtype = 'half'\n")
    (tmp_path / "promptmill.toml").write_text('model = "owl"\n"flush_s" = 4\n')
    monkeypatch.setenv("PROMPTMILL_LEASE_S", "60")
    found = shown()
    assert list(found) == list(Settings.model_fields)
    said = {name: tuple(setting.values())[1:] for name, setting in found.items()}
    assert said["home"] == (str(home), "environment", "PROMPTMILL_HOME")
    assert said["lease_s"] == (60.0, "environment", "PROMPTMILL_LEASE_S")
    assert said["model"] == ("owl", "file", f"{tmp_path}/promptmill.toml, line 1")
    assert said["flush_s"] == (4.0, "file", f"{tmp_path}/promptmill.toml, line 2")
    assert said["sweep_s"] == (7.0, "file", f"{home}/promptmill.toml, line 3")
    assert said["engine_args"] == ({"dtype": "half"}, "file", f"{home}/promptmill.toml, line 4")
    assert said["max_attempts"] == (2, "default", None)
    assert said["engine_num_seqs"] == (None, "default", None)


def test_what_is_not_set_is_shown_as_it_comes_out(home: Path) -> None:
    found = shown()
    assert found["database_url"]["value"] == f"sqlite:///{home}/promptmill.db"
    assert found["broker_url"]["value"] == f"redis+socket://{home}/redis.sock"
    assert not list(home.iterdir()), "looking makes nothing"


def test_people_get_the_same_as_a_table(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("PROMPTMILL_LEASE_S", "60")
    lines = CliRunner().invoke(cli.main, ["config"]).stdout.splitlines()
    assert len(lines) == len(Settings.model_fields)
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["lease_s"] == ["60.0", "PROMPTMILL_LEASE_S"]
    assert rows["home"] == [str(home), "PROMPTMILL_HOME"]
    assert rows["engine_num_seqs"] == ["-", "default"]


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("PROMPTMILL_DATABASE_URL", f"postgresql://ada:{SECRET}@db/mill?sslpassword={SECRET}")
    monkeypatch.setenv("PROMPTMILL_BROKER_URL", f"rediss://:{SECRET}@queue:6379/0?password={SECRET}")
    tokens = {"hf_token": SECRET, "kv": {"api_key": SECRET, "url": f"redis://a:{SECRET}@b"}, "list": [1]}
    monkeypatch.setenv("PROMPTMILL_ENGINE_ARGS", json.dumps(tokens))
    assert shown()["database_url"]["value"] == "postgresql://ada:***@db/mill?sslpassword=***"
    assert shown()["broker_url"]["value"] == "rediss://:***@queue:6379/0?password=***"
    assert shown()["engine_args"]["value"] == {
        "hf_token": "***",
        "kv": {"api_key": "***", "url": "redis://a:***@b"},
        "list": [1],
    }
    for arguments in (["config"], ["config", "--json"]):
        assert SECRET not in CliRunner().invoke(cli.main, arguments).output
    (home / "promptmill.toml").write_text(f'engine_args = "{SECRET}"\n')
    monkeypatch.delenv("PROMPTMILL_ENGINE_ARGS")
    refused = CliRunner().invoke(cli.main, ["config"])
    assert refused.exit_code == cli.Exit.USAGE
    assert SECRET not in refused.output


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        ("postgresql://ada:pw@db:5432/mill", "postgresql://ada:***@db:5432/mill"),
        ("postgresql://ada:p@ss@db/mill", "postgresql://ada:***@db/mill"),
        ("redis://:p/w#?@db/0", "redis://:***@db/0"),
        ("postgresql:///mill?host=/run&password=pw&x=1", "postgresql:///mill?host=/run&password=***&x=1"),
        ("postgresql://db:5432/mill", "postgresql://db:5432/mill"),
        ("postgresql://ada@db/mill", "postgresql://ada@db/mill"),
        ("sqlite:////home/ada@lab/a:b.db", "sqlite:////home/ada@lab/a:b.db"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
    ],
)
def test_a_url_s_password_is_hidden_and_the_rest_stays(url: str, hidden: str) -> None:
    assert hide_password(url) == hidden
