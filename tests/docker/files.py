"""docker/ as data: instructions of the Dockerfile, services, manifests, and the command lines in all of them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).parents[2] / "docker"
TARGETS = ("capture", "worker", "service")
LONG_RUNNING = ("object-store", "scheduler", "worker", "service")


@dataclass
class Stage:
    """One FROM of the Dockerfile.

    Attributes:
        name: after AS; base: before it.
        instructions: (keyword, rest) in order, continuation lines joined.
    """

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, keyword: str) -> str | None:
        """The instruction that counts."""
        return next((rest for word, rest in reversed(self.instructions) if word == keyword), None)


def read_stages() -> dict[str, Stage]:
    """The stages of the Dockerfile by name, after the arguments before the first FROM as stage ""."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    stages = {"": Stage("", "")}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = Stage(name, base)
        elif keyword:
            list(stages.values())[-1].instructions.append((keyword, rest.strip()))
    return stages


def read_compose() -> dict[str, Any]:
    """compose.yaml with its anchors resolved and its variables as written."""
    found = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert isinstance(found, dict)
    return found


def read_example_environment() -> dict[str, str]:
    """The variables of example.env."""
    lines = (DOCKER / "example.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def interpolated(value: Any) -> Any:
    """What compose makes of `${NAME:-default}` and `${NAME:?message}` where no variable is set."""
    if isinstance(value, dict):
        return {key: interpolated(item) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\$\{\w+(?::-([^}]*)|:\?[^}]*)?\}", lambda match: match[1] or "", value)


def read_manifests() -> list[tuple[str, dict[str, Any]]]:
    """Every Kubernetes object with the name of its file."""
    return [
        (path.name, document)
        for path in sorted((DOCKER / "kubernetes").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
        if "metadata" in document
    ]


def pod_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's specification, by the object that it belongs to."""
    for _, document in read_manifests():
        name, spec = f"{document['kind']}/{document['metadata']['name']}", document.get("spec", {})
        if document["kind"] == "DaskCluster":
            yield f"{name} scheduler", spec["scheduler"]["spec"]
            yield f"{name} worker", spec["worker"]["spec"]
        elif "template" in spec:
            yield name, spec["template"]["spec"]


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All of a pod, those that come first included."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def entrypoints() -> dict[str, list[str]]:
    """What every image starts with, tini left out."""
    stages = read_stages()
    return {target: without_init(yaml.safe_load(stages[target].last("ENTRYPOINT") or "[]")) for target in TARGETS}


def without_init(command: list[str]) -> list[str]:
    """`tini -- streamsparse` -> `streamsparse`."""
    return command[2:] if command[:2] == ["tini", "--"] else command


def compose_commands() -> dict[str, list[str]]:
    """The whole command line of every service that starts one of our images."""
    starts = entrypoints()
    found = {}
    for name, service in interpolated(read_compose())["services"].items():
        if "build" in service and "command" in service:
            first = service.get("entrypoint", starts[service["build"]["target"]])
            found[f"compose {name}"] = [*without_init(first), *service["command"]]
    return found


def kubernetes_commands() -> dict[str, list[str]]:
    """The whole command line of every container, shell scripts left out."""
    starts = entrypoints()
    found = {}
    for name, spec in pod_specs():
        for container in containers(spec):
            target = re.sub(r".*streamsparse-|:.*", "", container["image"])
            command = without_init(container.get("command", starts[target]))
            if command[:1] != ["/bin/sh"]:
                found[f"{name} {container['name']}"] = [*command, *container["args"]]
    return found


def readme_commands() -> Iterator[list[str]]:
    """Every command line of README.md's examples."""
    for block in re.findall(r"```bash\n(.*?)```", (DOCKER / "README.md").read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def readme_streamsparse_commands() -> Iterator[list[str]]:
    """Those that end in a streamsparse command, as it reaches the process."""
    starts = entrypoints()
    for words in readme_commands():
        if words[0] == "streamsparse":
            yield words
        elif words[:2] == ["docker", "compose"] and "run" in words:
            yield ["streamsparse", *words[words.index("run") + 3 :]]
        elif words[:2] == ["docker", "run"]:
            image = next(number for number, word in enumerate(words) if re.match(r"streamsparse-\w+:", word))
            yield [*starts[re.sub(r"streamsparse-|:.*", "", words[image])], *words[image + 1 :]]


def run_script(script: Path | str, directory: Path, **variables: str) -> tuple[int, list[list[str]]]:
    """Run a script of shell where `streamsparse` only notes what it is told.

    Args:
        script: a file for bash, or text for sh.
        directory: for the notes.
        variables: of its environment.

    Returns:
        its exit status, and the arguments of every `streamsparse` that it started.
    """
    tools, notes = directory / "bin", directory / "notes"
    shutil.rmtree(tools, ignore_errors=True)
    notes.unlink(missing_ok=True)
    tools.mkdir()
    (tools / "streamsparse").write_text('#!/bin/sh\nprintf "%s\\037" "$@" >> "$NOTES"\necho >> "$NOTES"\n')
    (tools / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    command = ["bash", str(script)] if isinstance(script, Path) else ["sh", "-c", script]
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "NOTES": str(notes), **variables}
    done = subprocess.run(command, env=environment, cwd=directory, timeout=60, capture_output=True, check=False)
    lines = notes.read_text().splitlines() if notes.exists() else []
    return done.returncode, [line.split("\037")[:-1] for line in lines]
