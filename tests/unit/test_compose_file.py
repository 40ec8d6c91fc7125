"""The files of the service, read without a container engine. test_service.py runs the service."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from support import compose_services as compose
from support.compose_services import ROOT, NotStarted
from support.paths import SUPPORT

SCHEMAS = SUPPORT / "schemas"
OURS = ("init", "mlflow", "worker")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout after `make secrets`."""
    path = compose.copy_of_the_files(tmp_path_factory.mktemp("service"))
    subprocess.run([path / "deploy" / "secrets.sh"], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def file(folder: Path) -> dict[str, Any]:
    return compose.read(folder)


# The compose file ---------------------------------------------------------------------------------------------------


def test_the_file_follows_the_compose_specification(file: dict[str, Any]) -> None:
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    for read in (file, yaml.safe_load((ROOT / "docker-compose.yml").read_text())):
        jsonschema.Draft202012Validator(schema).validate(read)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**file, "services": {"worker": {"comand": ["true"]}}})


def test_every_service_is_locked_down(file: dict[str, Any]) -> None:
    assert set(file["services"]) == {"postgres", *OURS}
    for name, service in file["services"].items():
        uid, gid = service["user"].split(":")
        assert int(uid) > 0, f"{name} runs as root"
        assert int(gid) > 0, f"{name} runs as root's group"
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "pid", "ipc", "network_mode", "devices"} & set(service), name
        limits = service["deploy"]["resources"]["limits"]
        assert set(limits) == {"cpus", "memory", "pids"}, name
        assert service["restart"] in ("unless-stopped", "on-failure:5"), name
        assert "/var/run/docker.sock" not in str(service), name


def test_every_running_service_has_a_health_check_that_the_next_one_waits_for(file: dict[str, Any]) -> None:
    services = file["services"]
    for name in ("postgres", "mlflow", "worker"):
        check = services[name]["healthcheck"]
        assert check["test"][0] == "CMD", name
        assert {"interval", "timeout", "retries", "start_period"} <= set(check), name
    assert services["init"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("mlflow", "worker"):
        assert services[name]["depends_on"]["init"] == {"condition": "service_completed_successfully"}, name
    assert services["worker"]["depends_on"]["mlflow"] == {"condition": "service_healthy"}


def test_only_mlflow_has_a_port_and_only_this_machine_reaches_it(file: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in file["services"].items() if "ports" in service}
    assert published == {"mlflow": ["127.0.0.1:5000:5000"]}
    assert file["services"]["postgres"]["networks"] == ["inside"]
    assert file["networks"]["inside"] == {"internal": True}


def test_images_have_a_fixed_tag(file: dict[str, Any]) -> None:
    bases = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for image in [*(service["image"] for service in file["services"].values()), *bases]:
        assert re.search(r":\d+\.\d+(\.\d+)?(-\w+)*$", image), image
    major = subprocess.run([compose.postgres_programs() / "postgres", "-V"], capture_output=True, text=True, check=True)
    assert re.search(r"postgres:(\d+)", file["services"]["postgres"]["image"])[1] in major.stdout, (  # type: ignore[index]
        "the tests run another PostgreSQL than the service does"
    )


def test_many_workers_can_run_and_share_a_home(file: dict[str, Any]) -> None:
    worker = file["services"]["worker"]
    assert "container_name" not in worker
    assert "home:/var/lib/overnight" in worker["volumes"]
    assert "home=/var/lib/overnight" in worker["command"]
    assert {"postgres", "artifacts", "home", "data"} == set(file["volumes"])


# Secrets ------------------------------------------------------------------------------------------------------------


def test_without_secrets_nothing_starts_and_the_message_has_a_remedy(tmp_path: Path) -> None:
    compose.copy_of_the_files(tmp_path)
    with pytest.raises(NotStarted, match=r"OVERNIGHT_UID .*make secrets"):
        compose.read(tmp_path)
    (tmp_path / ".env").write_text("OVERNIGHT_UID=10001\nOVERNIGHT_GID=10001\n")
    with pytest.raises(NotStarted, match="bind source path does not exist"):
        compose.read(tmp_path)


def test_no_service_starts_without_one_of_its_secrets(tmp_path: Path) -> None:
    compose.copy_of_the_files(tmp_path)
    subprocess.run([tmp_path / "deploy" / "secrets.sh"], check=True, capture_output=True)
    for name, secret in compose.read(tmp_path)["secrets"].items():
        held = (tmp_path / secret["file"]).read_bytes()
        (tmp_path / secret["file"]).unlink()
        with pytest.raises(NotStarted, match=name):
            compose.read(tmp_path)
        (tmp_path / secret["file"]).write_bytes(held)


def test_secrets_are_random_readable_by_their_owner_only_and_never_overwritten(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        compose.copy_of_the_files(tmp_path / name)
        subprocess.run([tmp_path / name / "deploy" / "secrets.sh"], check=True, capture_output=True)
        made.append({path.name: path.read_text() for path in (tmp_path / name / "secrets").iterdir()})
    assert set(made[0]) == set(compose.read(tmp_path / "one")["secrets"])
    assert not set(made[0].values()) & set(made[1].values())
    assert len(set(made[0].values())) == len(made[0])
    for path in [*(tmp_path / "one" / "secrets").iterdir(), tmp_path / "one" / ".env"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "one" / "secrets").stat().st_mode) == 0o700
    (tmp_path / "one" / "secrets" / "tracking_password").unlink()
    again = subprocess.run([tmp_path / "one" / "deploy" / "secrets.sh"], check=True, capture_output=True, text=True)
    assert again.stdout == "wrote secrets/tracking_password\n"
    now = {path.name: path.read_text() for path in (tmp_path / "one" / "secrets").iterdir()}
    assert {name for name in now if now[name] != made[0][name]} == {"tracking_password"}


def test_a_role_has_the_same_password_in_every_secret(folder: Path) -> None:
    held = {path.name: path.read_text() for path in (folder / "secrets").iterdir()}
    assert held["storage_url"] == f"postgresql+psycopg://overnight:{held['storage_password']}@postgres:5432/overnight"
    assert held["mlflow_url"] == f"postgresql+psycopg://mlflow:{held['mlflow_password']}@postgres:5432/mlflow"
    assert held["logins_url"] == f"postgresql+psycopg://mlflow:{held['mlflow_password']}@postgres:5432/mlflow_auth"


def test_a_service_gets_the_secrets_that_it_reads_and_no_others(file: dict[str, Any]) -> None:
    for name, service in file["services"].items():
        read = {Path(value).name for key, value in service["environment"].items() if key.endswith("_FILE")}
        assert read == set(service["secrets"]), name
        assert "mlflow_admin_password" not in service["secrets"] or name == "mlflow"
        assert "postgres_password" not in service["secrets"] or name == "postgres"
    assert not [value for value in _words(file["services"]) if re.search(r"://[^/\s]*:[^/\s]*@", value)]


def test_git_and_the_image_exclude_secrets_and_backups() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/.env", "/secrets/", "/backups/"} <= set(ignored)
    first, *lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*", "the image is built from what is named, and from nothing else"
    assert {line for line in lines if line.startswith("!")} == {
        "!constraints.txt", "!pyproject.toml", "!README.md", "!LICENSE", "!conf", "!src",
    }  # fmt: skip


def _words(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _words(value)
    else:
        yield str(node)


# Kubernetes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))


def test_the_manifests_follow_the_kubernetes_api(manifests: list[dict[str, Any]]) -> None:
    schema = json.loads((SCHEMAS / "kubernetes.json").read_text())
    kinds = schema.pop("kinds")
    for manifest in manifests:
        validator = jsonschema.Draft202012Validator({**schema, "$ref": f"#/$defs/{kinds[manifest['kind']]}"})
        validator.validate(manifest)
        assert not validator.is_valid({**manifest, "sepc": {}}), "unknown keys are mistakes"
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "overnight"


def test_a_pod_runs_what_the_compose_file_runs(manifests: list[dict[str, Any]], file: dict[str, Any]) -> None:
    services = {"postgres": "postgres", "migrate": "init", "mlflow": "mlflow", "worker": "worker"}
    found = {m["metadata"]["name"]: m["spec"]["template"]["spec"] for m in manifests if "template" in m.get("spec", {})}
    assert set(found) == set(services)
    for name, pod in found.items():
        (container,), service = pod["containers"], file["services"][services[name]]
        its_own = re.compile(r"--(allowed-hosts|cors-allowed-origins)=")  # each place has names of its own
        assert [a for a in container["args"] if not its_own.match(a)] == [
            a for a in service["command"] if not its_own.match(a)
        ], name
        assert {e["name"]: e["value"] for e in container["env"]} == service["environment"], name
        mounted = {v["name"]: v for v in pod["volumes"]}
        assert {item["key"] for item in mounted["secrets"]["secret"]["items"]} == set(service["secrets"]), name


def test_a_pod_is_locked_down(manifests: list[dict[str, Any]]) -> None:
    for pod in [m["spec"]["template"]["spec"] for m in manifests if "template" in m.get("spec", {})]:
        (container,) = pod["containers"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert all("value" in variable for variable in container["env"]), "secrets are files"
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies, "what is not allowed is forbidden"
    home = next(m for m in manifests if m["kind"] == "PersistentVolumeClaim" and m["metadata"]["name"] == "home")
    assert home["spec"]["accessModes"] == ["ReadWriteMany"]
