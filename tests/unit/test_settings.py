"""Settings: where they come from and in which order, which are refused, and that no refusal shows a value."""

import os
from pathlib import Path

import pytest

from db.errors import SettingsError
from jobs.settings import PREFIX, Settings, default_home, load_settings

SECRET = "hunter2-of-production"  # noqa: S105  it stands for one


def write_toml(home: Path, text: str | bytes) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "promptmill.toml").write_bytes(text.encode() if isinstance(text, str) else text)


def refusal(**environment: str) -> str:
    """The text that the settings are refused with, which must not show a secret."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SettingsError) as caught:
            load_settings()
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None, "a traceback would show the value"
    return str(caught.value)


# where a setting comes from


def test_the_defaults_hold_and_agree_with_each_other() -> None:
    settings = load_settings()
    assert settings.model == "hermes-2-pro-mistral-7b"
    assert settings.engine == "vllm"
    assert settings.lease_s == 30
    assert settings.has_private_broker


def test_the_environment_sets_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_LEASE_S", "60")
    assert load_settings().lease_s == 60


def test_the_file_in_the_home_folder_sets_a_setting(home: Path) -> None:
    write_toml(home, 'model = "smollm2-135m-instruct"\nlease_s = 45\n')
    assert (load_settings().model, load_settings().lease_s) == ("smollm2-135m-instruct", 45)


def test_the_environment_goes_before_the_file_and_both_before_the_default(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toml(home, "lease_s = 45\nflush_s = 3\n")
    monkeypatch.setenv("PROMPTMILL_LEASE_S", "60")
    settings = load_settings()
    assert (settings.lease_s, settings.flush_s, settings.heartbeat_s) == (60, 3, 2)


def test_what_the_caller_says_goes_before_all(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toml(home, "lease_s = 45\n")
    monkeypatch.setenv("PROMPTMILL_LEASE_S", "60")
    assert load_settings(lease_s=90).lease_s == 90


def test_an_empty_variable_is_as_good_as_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toml(home, 'model = "smollm2-135m-instruct"\n')
    for name in ("MODEL", "ENGINE_NUM_SEQS", "BROKER_URL", "LEASE_S"):
        monkeypatch.setenv(PREFIX + name, "")
    settings = load_settings()
    assert settings.model == "smollm2-135m-instruct"
    assert settings.engine_num_seqs is None
    assert settings.lease_s == 30


def test_settings_do_not_change_once_they_are_loaded() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.lease_s = 1  # type: ignore[misc]


# the home folder


def test_the_home_is_the_one_of_the_working_folder_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROMPTMILL_HOME")
    (tmp_path / ".promptmill").mkdir()
    assert load_settings().home == default_home() == tmp_path / ".promptmill"


def test_else_the_home_is_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMPTMILL_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "ada"))
    (tmp_path / ".promptmill").write_text("a file, and no home")
    assert load_settings().home == tmp_path / "ada" / ".promptmill"


def test_an_empty_home_is_the_default_one_and_never_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPTMILL_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "ada"))
    assert load_settings().home == tmp_path / "ada" / ".promptmill"


def test_a_home_may_begin_with_a_tilde_or_be_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "ada"))
    monkeypatch.setenv("PROMPTMILL_HOME", "~/mill")
    write_toml(tmp_path / "ada" / "mill", "flush_s = 4\n")
    assert load_settings().home == tmp_path / "ada" / "mill"
    assert load_settings().flush_s == 4
    monkeypatch.setenv("PROMPTMILL_HOME", "mill")
    assert load_settings().home == tmp_path / "mill"


def test_a_home_of_nobody_is_refused() -> None:
    assert "PROMPTMILL_HOME" in refusal(PROMPTMILL_HOME="~no-such-user-here/mill")


def test_the_database_is_a_file_in_the_home_folder_unless_a_url_names_another(home: Path) -> None:
    assert load_settings().resolved_database_url == f"sqlite:///{home}/promptmill.db"
    url = "postgresql://ada@db/mill"
    assert load_settings(database_url=url).resolved_database_url == url


# the file in the working folder


def test_the_folder_s_file_goes_before_the_home_s_and_after_the_environment(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toml(home, "lease_s = 45\nflush_s = 3\nsweep_s = 7\n")
    write_toml(tmp_path, "lease_s = 50\nflush_s = 4\n")
    monkeypatch.setenv("PROMPTMILL_LEASE_S", "60")
    settings = load_settings()
    assert (settings.lease_s, settings.flush_s, settings.sweep_s) == (60, 4, 7)


def test_the_nearest_engine_arguments_count_as_a_whole(tmp_path: Path, home: Path) -> None:
    write_toml(home, "[engine_args]\nmax_num_seqs = 32\n")
    write_toml(tmp_path, '[engine_args]\ndtype = "bfloat16"\n')
    assert load_settings().engine_args == {"dtype": "bfloat16"}


def test_empty_text_in_a_file_is_as_good_as_none(tmp_path: Path, home: Path) -> None:
    write_toml(home, 'model = "owl"\n')
    write_toml(tmp_path, 'model = ""\nhome = ""\n')
    assert (load_settings().model, load_settings().home) == ("owl", home)


def test_the_folder_s_file_may_name_the_home_whose_file_is_then_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toml(tmp_path, 'home = "mill"\n')
    write_toml(tmp_path / "mill", "flush_s = 4\n")
    write_toml(tmp_path / "home", "flush_s = 5\n")
    assert load_settings().flush_s == 5, "the environment's home goes first"
    monkeypatch.delenv("PROMPTMILL_HOME")
    assert (load_settings().home, load_settings().flush_s) == (tmp_path / "mill", 4)


def test_a_folder_that_is_the_home_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_HOME", str(tmp_path))
    write_toml(tmp_path, "flush_s = 4\n")
    assert load_settings().flush_s == 4


@pytest.mark.parametrize("where", ["folder", "home"])
def test_a_relative_path_in_a_file_counts_from_the_file(tmp_path: Path, home: Path, where: str) -> None:
    folder = {"folder": tmp_path, "home": home}[where]
    write_toml(folder, 'database_url = "sqlite:///jobs/mill.db"\n')
    assert load_settings().resolved_database_url == f"sqlite:///{folder}/jobs/mill.db"
    for url in ("sqlite:////data/mill.db", "sqlite://", "sqlite:///:memory:", "postgresql://db/mill"):
        write_toml(folder, f'database_url = "{url}"\n')
        assert load_settings().database_url == url


def test_a_relative_path_in_the_environment_counts_from_the_working_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PROMPTMILL_DATABASE_URL", "sqlite:///mill.db")
    assert load_settings().database_url == "sqlite:///mill.db"


def test_a_file_of_the_folder_that_others_could_have_written_is_refused(tmp_path: Path) -> None:
    write_toml(tmp_path, "lease_s = 45\n")
    path = tmp_path / "promptmill.toml"
    path.chmod(0o646)
    assert refusal() == f"{path} may be written by everybody; run: chmod o-w {path}"
    path.chmod(0o664)
    assert load_settings().lease_s == 45, "a group is trusted, as umask 002 has it"
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: a file of somebody else. Only root may give one away")
    os.chown(path, 4242, 4242)
    assert "belongs to somebody else" in refusal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 4242)
        assert load_settings().lease_s == 45
        os.chown(path, 0, 0)
        assert load_settings().lease_s == 45, "root is trusted"


def test_a_home_s_file_may_be_somebody_else_s(home: Path) -> None:
    """The home was chosen; a folder that one happens to work in was not."""
    write_toml(home, "lease_s = 45\n")
    (home / "promptmill.toml").chmod(0o646)
    assert load_settings().lease_s == 45


def test_a_working_folder_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert refusal() == "the working folder is there no more; go to another one: cd"


# the private Redis


def test_the_private_redis_listens_in_the_home_folder(home: Path) -> None:
    settings = load_settings()
    assert settings.private_broker_socket == home / "redis.sock"
    assert settings.resolved_broker_url == f"redis+socket://{home}/redis.sock"


def test_a_broker_url_takes_the_place_of_the_private_redis() -> None:
    settings = load_settings(broker_url="redis://queue:6379/0")
    assert not settings.has_private_broker
    assert settings.resolved_broker_url == "redis://queue:6379/0"


@pytest.mark.parametrize("letter", ["h", "ä"])
def test_a_home_too_long_for_a_socket_gets_one_elsewhere(tmp_path: Path, letter: str) -> None:
    long = load_settings(home=tmp_path / (letter * 90))
    again = load_settings(home=tmp_path / (letter * 90))
    other = load_settings(home=tmp_path / (letter * 91))
    assert len(os.fsencode(long.private_broker_socket)) <= 107
    assert long.private_broker_socket == again.private_broker_socket, "every process finds the same one"
    assert long.private_broker_socket != other.private_broker_socket
    assert str(os.getuid()) in str(long.private_broker_socket)


def test_the_longest_path_that_a_socket_may_have_is_used(tmp_path: Path) -> None:
    room = 107 - len(os.fsencode(tmp_path)) - len("//redis.sock")
    fits, does_not = (load_settings(home=tmp_path / ("h" * length)) for length in (room, room + 1))
    assert fits.private_broker_socket == fits.home / "redis.sock"
    assert does_not.private_broker_socket.parent != does_not.home


# what is refused


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("PROMPTMILL_LEASES", "PROMPTMILL_LEASE_S"), ("PROMPTMILL_DATABSE_URL", "PROMPTMILL_DATABASE_URL")],
)
def test_an_unknown_variable_is_refused_with_the_nearest_name(name: str, nearest: str) -> None:
    text = refusal(**{name: SECRET})
    assert name in text
    assert f"did you mean {nearest}?" in text


def test_every_unknown_variable_is_named_at_once() -> None:
    text = refusal(PROMPTMILL_LEASES=SECRET, PROMPTMILL_XYZZY=SECRET)
    assert "PROMPTMILL_LEASES" in text
    assert "PROMPTMILL_XYZZY is not a setting\n" in f"{text}\n", "nothing is near it"
    assert text.endswith(f"the settings are: {', '.join(Settings.model_fields)}")


def test_a_variable_in_small_letters_is_refused_too() -> None:
    assert "did you mean PROMPTMILL_MODEL?" in refusal(PROMPTMILL_model=SECRET)


def test_an_unknown_key_of_the_file_is_refused_with_the_nearest_name(home: Path) -> None:
    write_toml(home, f'data_base_url = "{SECRET}"\n')
    assert refusal() == (
        f"{home}/promptmill.toml, line 1: data_base_url is not a setting; did you mean database_url?"
    )


def test_a_section_of_the_file_is_refused(home: Path) -> None:
    write_toml(home, f'[database]\nurl = "{SECRET}"\n')
    assert "database" in refusal()


def test_the_file_in_a_home_cannot_name_another_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is started for that other home would read another file."""
    monkeypatch.delenv("PROMPTMILL_HOME")
    home = tmp_path / ".promptmill"
    write_toml(home, f'home = "{tmp_path / "other"}"\n')
    assert refusal() == (
        f"{home}/promptmill.toml, line 1: home is the folder of this file; set PROMPTMILL_HOME instead"
    )
    write_toml(home, f'home = "{home}"\n')
    assert load_settings().home == home


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (f'database_url = "{SECRET}', "its end: this is not TOML: Unterminated string"),
        (f"{SECRET}", "its end: this is not TOML: Expected '='"),
        (f'model = "{SECRET}"\nmodel = "{SECRET}"\n', "line 2, column "),
        (f"lease_s = 5\n\nmodel = {SECRET}\n", "line 3, column 9: this is not TOML: Invalid value"),
        (
            b'# fine\nmodel = "\xff' + SECRET.encode() + b'"\n',
            "line 2: this is not TOML: it is not UTF-8 text",
        ),
        (b"\x00" + SECRET.encode(), "line 1, column 1: "),
        ("engine_args = " + "[" * 100_000, "this is not TOML: it is nested too deeply"),
    ],
    ids=["open", "word", "twice", "bare", "latin", "nul", "deep"],
)
def test_a_file_that_is_no_toml_is_refused_with_the_line(home: Path, text: str | bytes, where: str) -> None:
    write_toml(home, text)
    said = refusal()
    assert said.startswith(f"{home}/promptmill.toml, ")
    assert where in said
    assert said.endswith('Each line is name = value, with text in quotes: model = "NAME"')


def test_a_file_that_cannot_be_read_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toml(home, "lease_s = 45\n")

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal().endswith("promptmill.toml: Permission denied; mend that, or move it away")


def test_a_folder_in_the_file_s_place_is_refused(home: Path) -> None:
    (home / "promptmill.toml").mkdir()
    assert refusal() == f"cannot read {home}/promptmill.toml: Is a directory; mend that, or move it away"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEASE_S", SECRET),
        ("LEASE_S", "0"),
        ("LEASE_S", "-1"),
        ("LEASE_S", "nan"),
        ("LEASE_S", "inf"),
        ("STOP_GRACE_S", "inf"),
        ("ECHO_LATENCY_S", "-0.1"),
        ("CHUNK_NUM_REQUESTS", "0"),
        ("CHUNK_NUM_REQUESTS", "10001"),
        ("CHUNK_NUM_REQUESTS", "1.5"),
        ("CHUNK_NUM_REQUESTS", "9" * 5000),
        ("ENGINE", SECRET),
        ("ENGINE_NUM_SEQS", "0"),
        ("WORKER_NUM_CHUNKS", "257"),
        ("MAX_LINE_BYTES", "1023"),
        ("BROKER_URL", f"amqp://ada:{SECRET}@queue"),
        ("BROKER_URL", SECRET),
        ("BROKER_URL", f"redis://:a/{SECRET}@queue"),
        ("BROKER_URL", f"redis://:{SECRET}/a@queue"),
        ("BROKER_URL", f"redis://:a@{SECRET}@queue"),
        ("BROKER_URL", f"redis://[{SECRET}"),
        ("BROKER_URL", f"redis://queue/{SECRET}"),
        ("ENGINE_ARGS", SECRET),
        ("ENGINE_ARGS", f'["{SECRET}"]'),
    ],
)
def test_a_malformed_value_is_refused_by_name_and_not_shown(name: str, value: str) -> None:
    text = refusal(**{PREFIX + name: value})
    assert f"setting {name.lower()} ({PREFIX}{name})" in text


@pytest.mark.parametrize(
    "url",
    [
        *(
            "redis://queue",
            "redis://queue/",
            "redis://:pa%40ss@queue:6379/1",
            "rediss://ada:pw@queue?ssl_cert_reqs=none",
        ),
        *("redis://[::1]:6379/0", "redis+socket:///run/redis.sock", "redis://a:6379;redis://b:6379"),
    ],
)
def test_a_broker_s_url_may_be(url: str) -> None:
    assert load_settings(broker_url=url).broker_url == url


def test_engine_arguments_are_a_json_object_or_a_section_of_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toml(home, '[engine_args]\nmax_num_seqs = 32\ndtype = "bfloat16"\n')
    assert load_settings().engine_args == {"max_num_seqs": 32, "dtype": "bfloat16"}
    monkeypatch.setenv("PROMPTMILL_ENGINE_ARGS", '{"enforce_eager": true, "quantization": null}')
    assert load_settings().engine_args == {"enforce_eager": True, "quantization": None}


def test_a_malformed_value_of_the_file_is_not_shown_either(home: Path) -> None:
    write_toml(home, f'model = "owl"\ndatabase_url = ["postgresql://ada:{SECRET}@db/mill"]\n')
    assert refusal().startswith(f"setting database_url ({home}/promptmill.toml, line 2): ")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"LEASE_S": "5", "HEARTBEAT_S": "2"}, "three times heartbeat_s"),
        ({"LEASE_S": "30", "HEARTBEAT_S": "10.1"}, "three times heartbeat_s"),
        ({"LEASE_S": "30", "FLUSH_S": "15.1"}, "half of lease_s"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, str], words: str) -> None:
    text = refusal(**{PREFIX + name: value for name, value in values.items()})
    assert words in text
    for name in values:
        assert f"{name.lower()} is from {PREFIX}{name}" in text


@pytest.mark.parametrize("values", [{"lease_s": 6, "heartbeat_s": 2}, {"lease_s": 30, "flush_s": 15}])
def test_settings_at_the_edge_agree(values: dict[str, float]) -> None:
    load_settings(**values)


# what the settings are for others


def test_every_time_and_size_has_its_unit_in_its_name() -> None:
    floats = [name for name, field in Settings.model_fields.items() if field.annotation is float]
    assert floats
    assert all(name.endswith("_s") for name in floats)


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_loading_settings_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_HOME", str(tmp_path / "not-there"))
    load_settings()
    assert not (tmp_path / "not-there").exists()
