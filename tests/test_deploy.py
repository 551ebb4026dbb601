"""What containers, clusters and init systems are told: as their own tools read it."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from servers import ROOT

from gateway.settings import GatewaySettings

MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
UNITS = sorted((ROOT / "deploy" / "systemd").iterdir())
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SECRETS = [
    "POSTGRES_PASSWORD", "OWNER_PASSWORD", "SERVICES_PASSWORD", "READER_PASSWORD",
    "REDIS_PASSWORD", "API_KEY", "ADMIN_API_KEY", "API_KEY_PEPPER", "PII_HASH_KEY",
    "GRAFANA_PASSWORD",
]  # fmt: skip
SETTINGS = {name.upper() for name in GatewaySettings.model_fields}


def _objects() -> Iterator[dict[str, Any]]:
    for file in MANIFESTS:
        yield from yaml.safe_load_all(file.read_text(encoding="utf-8"))


OBJECTS = [*_objects()]
PODS = [one for one in OBJECTS if one["kind"] in {"StatefulSet", "Deployment", "Job"}]


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, **options
    )


def test_the_dockerfile_is_what_its_linter_asks_for() -> None:
    linted = run(Path(sys.executable).with_name("hadolint"), ROOT / "Dockerfile")
    assert (linted.returncode, linted.stdout) == (0, "")


def test_images_get_every_file_that_the_dockerfile_copies() -> None:
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists()
                assert f"!{source.partition('/')[0]}" in allowed


@pytest.mark.parametrize(
    "manifest", OBJECTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}"
)
def test_every_manifest_fits_the_schema_of_its_kind(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("pod", PODS, ids=lambda one: one["metadata"]["name"])
def test_every_pod_runs_with_as_few_rights_as_it_needs(pod: dict[str, Any]) -> None:
    spec = pod["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]


def test_producers_and_consumers_scale_apart_and_keep_one_in_a_disruption() -> None:
    named = {(one["kind"], one["metadata"]["name"]) for one in OBJECTS}
    for name in ("producer", "consumer"):
        assert {("PodDisruptionBudget", name), ("HorizontalPodAutoscaler", name)} <= named
    for name in ("query", "gateway"):
        assert ("PodDisruptionBudget", name) in named


def test_manifests_and_compose_set_only_what_is_a_setting() -> None:
    (config,) = (one for one in OBJECTS if one["kind"] == "ConfigMap")
    assert set(config["data"]) <= SETTINGS
    for name in ("producer", "consumer", "query", "gateway", "migrate"):
        assert set(COMPOSE["services"][name]["environment"]) <= SETTINGS


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    for secret in SECRETS:
        assert f"${{{secret}:?}}" in text
        assert f"${{{secret}:-" not in text


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_every_service_of_compose_is_bounded_and_watched(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["user"].partition(":")[0] != "0"
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "mem_limit" in service
    assert "pids_limit" in service
    assert "healthcheck" in service or name == "migrate"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    for volume in service.get("volumes", ()):
        source = volume.partition(":")[0]
        assert source in COMPOSE["volumes"] or (ROOT / source).exists()


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="there is no docker-compose")
def test_compose_reads_its_file(tmp_path: Path) -> None:
    given = tmp_path / "given.env"
    given.write_text("".join(f"{name}=a-value-of-the-test\n" for name in SECRETS))
    config = ("-f", ROOT / "compose.yaml", "config", "--quiet")
    read = run("docker-compose", "--env-file", given, *config, cwd=tmp_path)
    assert (read.returncode, read.stdout) == (0, "")
    without = run("docker-compose", *config, cwd=tmp_path)
    assert without.returncode != 0
    assert "Missing mandatory value" in without.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8")
        program = "/opt/logging-service/.venv/bin/logging-service"
        assert unit.suffix == ".target" or program in text
        (tmp_path / unit.name).write_text(text.replace(program, sys.executable))
    verified = run("systemd-analyze", "verify", *tmp_path.iterdir())
    assert (verified.returncode, verified.stderr) == (0, "")
