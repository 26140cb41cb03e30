"""The container, compose and Kubernetes files agree with the package: names, options, routes."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from granalign_fast.cli.app import app

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = re.sub(r"\\\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
KUBERNETES: list[Any] = list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text()))
COMPOSE: Any = yaml.safe_load((ROOT / "compose.yaml").read_text())


def instructions(word: str) -> list[str]:
    """The arguments of every instruction of a name."""
    return re.findall(rf"^{word} (.*)$", DOCKERFILE, re.MULTILINE)


def container() -> Any:
    (deployment,) = [each for each in KUBERNETES if each["kind"] == "Deployment"]
    (one,) = deployment["spec"]["template"]["spec"]["containers"]
    return one


def parse(words: list[str]) -> dict[str, Any]:
    """The parameters of a command, which raises on an unknown option."""
    command: Any = typer.main.get_command(app)
    parameters: dict[str, Any] = command.commands[words[0]].make_context("x", words[1:]).params
    return parameters


def test_the_image_has_all_folders_of_the_package() -> None:
    copied = {word for line in instructions("COPY") for word in line.split()[:-1]}
    copied = {word for word in copied if not word.startswith(("--", "/"))}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = set(project["tool"]["setuptools"]["package-dir"].values())
    assert folders <= copied
    needed = {project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | {"pyproject.toml", "constraints.txt"} <= copied
    sent = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert set(sent) == copied
    extras = set(project["project"]["optional-dependencies"])
    (runtime,) = [line.split("=")[1] for line in instructions("ARG") if "RUNTIME" in line]
    named = re.findall(r"\[\$\{RUNTIME\},([\w,]+)\]", DOCKERFILE)
    assert {runtime, *named[0].split(",")} <= extras


def test_the_image_has_the_sentence_encoder_of_the_makefile() -> None:
    (version,) = re.findall(r"^MINILM := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert version in DOCKERFILE


def test_the_image_serves_without_being_root() -> None:
    assert instructions("USER") == ["10001:10001"]
    entry = [json.loads(line) for line in instructions("ENTRYPOINT")]
    assert entry == [["granalign"]]
    given = parse(json.loads(instructions("CMD")[0]))
    assert given["library"] == Path("/library") and given["host"] == "0.0.0.0"
    assert given["token_file"] == Path(COMPOSED_TOKENS)
    volumes = json.loads(instructions("VOLUME")[0])
    assert volumes == [str(given["library"]), str(given["models"])]


COMPOSED_TOKENS = "/run/secrets/tokens"
"""Where compose puts a secret of this name."""


def test_compose_mounts_what_the_image_serves() -> None:
    service = COMPOSE["services"]["granalign"]
    places = {volume.split(":")[1] for volume in service["volumes"]}
    assert places == set(json.loads(instructions("VOLUME")[0]))
    assert service["secrets"] == ["tokens"] and service["read_only"] is True
    assert set(COMPOSE["secrets"]) == {"tokens", "metrics_token"}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["granalign:8000"]}]
    assert job["authorization"]["credentials_file"] == "/run/secrets/metrics_token"


def test_kubernetes_starts_the_service_as_the_image_does() -> None:
    one = container()
    given = parse(one["args"])
    mounts = {mount["mountPath"]: mount for mount in one["volumeMounts"]}
    assert {str(given["library"]), str(given["models"]), str(given["token_file"].parent)} <= set(
        mounts
    )
    assert one["securityContext"]["readOnlyRootFilesystem"] is True
    (deployment,) = [each for each in KUBERNETES if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    assert (
        f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
        == (instructions("USER")[0])
    )
    named = {volume["name"] for volume in pod["volumes"]}
    assert named == {mount["name"] for mount in one["volumeMounts"]}
    claims = {each["metadata"]["name"] for each in KUBERNETES if "Claim" in each["kind"]}
    used = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]]
    assert claims == {name for name in used if name}


def test_probes_ask_for_routes_of_the_service() -> None:
    pytest.importorskip("fastapi")
    from granalign_fast.server.health import router

    routes = {route.path for route in router.routes}
    one = container()
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    paths = {one[probe]["httpGet"]["path"] for probe in probes}
    (health,) = instructions("HEALTHCHECK")
    paths |= {f"/{path}" for path in re.findall(r"http://127\.0\.0\.1:8000/([\w/]+)", health)}
    assert paths == {"/health/ready", "/health/live"} and paths <= routes
    # A balancer sends nothing to a service that loads its models; nobody ends it for that.
    assert one["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert one["ports"][0]["containerPort"] == int(instructions("EXPOSE")[0])
