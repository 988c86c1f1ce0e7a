"""deploy/ says what docs/gpu.md and the code say, as far as no systemd, Docker or cluster is needed to see it."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cli import main
from jobs.settings import PREFIX, Settings
from workers.exits import EXIT_ENGINE_DIED, EXIT_REFUSED, EXIT_UNAVAILABLE

_ROOT = Path(__file__).parents[2]
_DEPLOY = _ROOT / "deploy"
_UNIT = _DEPLOY / "promptmill-worker@.service"
_PAGE = (_ROOT / "docs" / "gpu.md").read_text("utf-8")
_NUM_GPUS = 8


def _unit() -> dict[str, list[tuple[str, str]]]:
    """The unit's sections; a key may be there more than once."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for line in _UNIT.read_text().splitlines():
        if line.startswith("["):
            values = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            name, value = line.split("=", 1)
            values.append((name, value))
    return sections


def _environment_of_unit() -> dict[str, str]:
    pairs = [value for name, value in _unit()["Service"] if name == "Environment"]
    return dict(pair.split("=", 1) for pair in pairs)


def _compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((_DEPLOY / "workers.compose.yml").read_text())
    return loaded


def _kubernetes(kind: str) -> dict[str, Any]:
    (found,) = [
        one for one in yaml.safe_load_all((_DEPLOY / "kubernetes.yaml").read_text()) if one["kind"] == kind
    ]
    loaded: dict[str, Any] = found
    return loaded


def _pod(kind: str) -> dict[str, Any]:
    pod: dict[str, Any] = _kubernetes(kind)["spec"]["template"]["spec"]
    return pod


def _are_settings(names: set[str]) -> bool:
    return {name.removeprefix(PREFIX).lower() for name in names if name.startswith(PREFIX)} <= set(
        Settings.model_fields
    )


def _command(words: list[str]) -> click.Command:
    command: click.Command = main
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


# systemd


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not here; the other tests read the unit too")
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/sh", _UNIT.read_text(), flags=re.MULTILINE)
    (tmp_path / _UNIT.name).write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(tmp_path / _UNIT.name.replace("@", "@0"))],
        capture_output=True,
        text=True,
        check=False,
    )
    # an unknown key is only a warning
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_an_ini_file_with_the_sections_of_a_service() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read(_UNIT)
    assert parser.sections() == list(_unit()) == ["Unit", "Service", "Install"]


def test_the_unit_runs_a_worker_on_the_gpu_of_its_instance() -> None:
    service = dict(_unit()["Service"])
    program, *words = shlex.split(service["ExecStart"])
    assert program.endswith("/bin/promptmill")
    assert _command(words).name == "worker"
    environment = _environment_of_unit()
    assert environment["CUDA_VISIBLE_DEVICES"] == "%i"
    assert _are_settings(set(environment))
    assert environment["PROMPTMILL_HOME"] == f"/var/lib/{service['StateDirectory']}"
    assert environment["HF_HOME"] == f"/var/cache/{service['CacheDirectory']}"


def test_systemd_starts_again_what_may_go_well_then_and_nothing_else() -> None:
    service = dict(_unit()["Service"])
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == str(EXIT_REFUSED)
    assert dict(_unit()["Unit"])["StartLimitIntervalSec"] == "0"
    assert service["KillMode"] == "mixed"


def test_whoever_stops_a_worker_waits_longer_than_the_worker_itself() -> None:
    grace_s = Settings.model_fields["stop_grace_s"].default
    waits = {
        int(dict(_unit()["Service"])["TimeoutStopSec"]),
        _pod("Deployment")["terminationGracePeriodSeconds"],
        *({"1m": 60}[one["stop_grace_period"]] for one in _compose()["services"].values()),
    }
    assert waits == {60}
    assert grace_s < 60
    assert "are 60 seconds in our files" in _PAGE
    assert f"`{PREFIX}STOP_GRACE_S` ({grace_s:g})" in _PAGE


# compose


def test_there_is_a_service_for_each_gpu_and_no_two_share_one() -> None:
    services = _compose()["services"]
    given = [one["deploy"]["resources"]["reservations"]["devices"] for one in services.values()]
    assert [device["device_ids"] for (device,) in given] == [[str(gpu)] for gpu in range(_NUM_GPUS)]
    assert list(services) == [f"gpu{gpu}" for gpu in range(_NUM_GPUS)]


def test_each_worker_is_as_the_one_of_the_other_compose_file() -> None:
    other = yaml.safe_load((_ROOT / "docker-compose.yml").read_text())["services"]["worker"]
    for service in _compose()["services"].values():
        for name in ("image", "command", "init", "security_opt", "shm_size", "stop_grace_period", "restart"):
            assert service[name] == other[name], name
        assert service["healthcheck"] == other["healthcheck"]
        assert set(service["environment"]) == set(other["environment"])
        assert [mount.split(":")[1] for mount in service["volumes"]] == [
            mount.split(":")[1] for mount in other["volumes"]
        ]
    assert (_DEPLOY / _compose()["x-worker"]["build"] / "Dockerfile").resolve() == _ROOT / "Dockerfile"


def test_what_a_worker_needs_is_asked_for_and_stands_in_no_file() -> None:
    environment = _compose()["x-worker"]["environment"]
    for name in ("PROMPTMILL_DATABASE_URL", "PGPASSWORD", "PROMPTMILL_BROKER_URL"):
        assert environment[name].startswith(f"${{{name}:?")
        assert name in _PAGE
    for path in _DEPLOY.iterdir():
        assert not re.search(r"://[^/@\s]*:[^/@\s]*@", path.read_text()), f"{path}: a password in a URL"


# Kubernetes


def test_all_containers_have_the_settings_and_the_password_and_no_others() -> None:
    config = _kubernetes("ConfigMap")
    for kind in ("Job", "Deployment"):
        (container,) = _pod(kind)["containers"]
        assert _command(container["args"]).name in {"upgrade", "worker"}
        assert container["image"] == "promptmill"
        assert container["envFrom"] == [
            {"configMapRef": {"name": config["metadata"]["name"]}},
            {"secretRef": {"name": "promptmill"}},
        ]
        # a Service called promptmill would set PROMPTMILL_PORT, which is no setting
        assert _pod(kind)["enableServiceLinks"] is False
    assert _are_settings(set(config["data"]))
    assert "create secret generic promptmill --from-literal=PGPASSWORD=" in _PAGE


def test_a_pod_has_one_gpu_shared_memory_and_the_images_user() -> None:
    pod = _pod("Deployment")
    (worker,) = pod["containers"]
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert _kubernetes("Deployment")["spec"]["replicas"] == _NUM_GPUS
    mounts = {mount["name"]: mount["mountPath"] for mount in worker["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    assert mounts["shared-memory"] == "/dev/shm"  # noqa: S108  where it is in every container
    dockerfile = (_ROOT / "Dockerfile").read_text()
    assert f"PROMPTMILL_HOME={mounts['home']}" in dockerfile
    assert f"HF_HOME={mounts['weights']}" in dockerfile
    assert f"--uid {pod['securityContext']['runAsUser']} " in dockerfile


def test_nothing_kills_a_worker_that_waits() -> None:
    (worker,) = _pod("Deployment")["containers"]
    assert "livenessProbe" not in worker
    program, *words = worker["readinessProbe"]["exec"]["command"]
    assert (program, _command(words).name) == ("promptmill", "check")
    labels = _kubernetes("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert _kubernetes("Deployment")["spec"]["selector"] == {"matchLabels": labels}
    rolling = _kubernetes("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 0, "maxUnavailable": 1}


# the page


def test_the_exit_codes_of_a_worker_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \|", _PAGE.split("## What starts what again")[1], re.MULTILINE)
    assert {int(row) for row in rows} == {0, EXIT_REFUSED, EXIT_UNAVAILABLE, EXIT_ENGINE_DIED, 128 + 9}


def test_every_file_of_deploy_is_explained_and_every_one_that_is_named_is_there() -> None:
    named = set(re.findall(r"deploy/[\w.@-]*\w", _PAGE))
    assert named == {f"deploy/{path.name}" for path in _DEPLOY.iterdir()}
    for name in named:
        assert (_ROOT / name).is_file()


def test_the_workers_env_of_the_page_has_settings_only() -> None:
    lines = re.findall(r"^(\w+)=", _PAGE.split("```text\n")[1].split("```")[0], re.MULTILINE)
    assert set(lines) == set(_compose()["x-worker"]["environment"])
    assert _are_settings(set(lines))
