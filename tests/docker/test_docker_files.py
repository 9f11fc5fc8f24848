"""docker/ without Docker: what can be known of the files by reading them."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from dask.utils import parse_bytes
from packaging.requirements import Requirement

from tests.docker.files import (
    DOCKER,
    LONG_RUNNING,
    TARGETS,
    containers,
    interpolated,
    pod_specs,
    read_compose,
    read_example_environment,
    read_manifests,
    read_stages,
)

FILES = sorted(path for path in DOCKER.rglob("*") if path.is_file() and path.name not in (".env", "tokens"))
# Hosts in docker/ are examples, this machine, or names of services; the rest are Kubernetes' API groups and labels.
KNOWN_DOMAINS = re.compile(
    r"(?:[\w.-]+\.)?example\.org|kubernetes\.dask\.org|dask\.org|org\.opencontainers[\w.]*|[\w.-]+\.kubernetes\.io"
    r"|[\w.-]+\.k8s\.io|kubernetes\.io|nvidia\.com"
)
DOMAIN = re.compile(
    r"(?<![\w./-])(?:[a-z0-9-]+\.)+(?:org|com|net|io|dev|ai|cloud|internal)(?![\w-])", re.IGNORECASE
)


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix == ".yaml"], ids=lambda p: str(p.name))
def test_yaml_parses_and_says_nothing_twice(path: Path) -> None:
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: Strict, node: yaml.MappingNode) -> object:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), f"{path.name}:{node.start_mark.line + 1}: {sorted(keys)}"
        loader.flatten_mapping(node)
        return dict(loader.construct_pairs(node, deep=True))

    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    documents = list(yaml.load_all(path.read_text(), Loader=Strict))
    assert documents
    assert all(isinstance(document, dict) for document in documents)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(DOCKER)))
def test_no_host_but_examples(path: Path) -> None:
    unknown = [host for host in DOMAIN.findall(path.read_text()) if not KNOWN_DOMAINS.fullmatch(host)]
    assert not unknown


@pytest.mark.parametrize("name", TARGETS)
def test_images_run_as_a_user_below_tini(name: str) -> None:
    stages = read_stages()
    stage, found, entrypoint = stages[name], {}, yaml.safe_load(stages[name].last("ENTRYPOINT") or "")
    assert entrypoint[:2] == ["tini", "--"], "exec form, with an init"
    while stage.name != "python":
        found = dict(stage.instructions) | found
        stage = stages[stage.base]
    user = found["USER"].split(":")[0]
    assert user.isdecimal(), "Kubernetes can tell that a number is not root, of a name it cannot"
    assert int(user) > 0
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert any(rest.startswith("--from=builder-") for word, rest in stages[name].instructions if word == "COPY")


def test_the_image_with_a_server_has_a_health_check() -> None:
    check = read_stages()["service"].last("HEALTHCHECK") or ""
    assert "CMD [" in check
    assert "/healthz" in check


def test_versions_are_pinned() -> None:
    stages = read_stages()
    arguments = dict(rest.split("=", 1) for stage in stages.values() for word, rest in stage.instructions
                     if word == "ARG" and "=" in rest)  # fmt: skip
    assert re.fullmatch(r"3\.\d+\.\d+", arguments["PYTHON_VERSION"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", arguments["UV_VERSION"])
    outside = {stage.base for stage in stages.values()} - set(stages)
    assert outside == {"python:${PYTHON_VERSION}-slim-bookworm${PYTHON_DIGEST:+@${PYTHON_DIGEST}}"}
    runs = " ".join(rest for stage in stages.values() for word, rest in stage.instructions if word == "RUN")
    packages = re.findall(r"--no-install-recommends\s+(.*?)&&", runs)
    assert all("=" in package for found in packages for package in found.split())
    for service in interpolated(read_compose())["services"].values():
        assert re.fullmatch(r"[\w./-]+:\d+(\.\d+)+", service["image"])
    for _, spec in pod_specs():
        for container in containers(spec):
            assert re.fullmatch(r"[\w./-]*streamsparse-\w+(:\d+(\.\d+)+)?", container["image"])


def test_the_constraints_pin_what_the_project_needs() -> None:
    lines = (DOCKER / "constraints.txt").read_text().splitlines()
    pinned: dict[str, list[Requirement]] = {}
    for line in lines:
        if not line.startswith("#"):
            requirement = Requirement(line)
            assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), line
            pinned.setdefault(requirement.name, []).append(requirement)
    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())
    needed = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    needed += [one for extra in project["project"]["optional-dependencies"].values() for one in extra]
    needed += [line.split("#")[0] for line in (DOCKER / "images.in").read_text().splitlines() if line[0] != "#"]
    for text in needed:
        requirement = Requirement(text)
        for pin in pinned[requirement.name]:
            version = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(version, prereleases=True), f"{text}: {pin}"


def test_services_are_built_from_stages_that_exist_and_are_hardened() -> None:
    compose = interpolated(read_compose())
    stages = read_stages()
    for name, service in compose["services"].items():
        if "build" in service:
            assert service["build"]["target"] in stages
            assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["deploy"]["resources"]["limits"].keys() >= {"memory", "pids"}, name
        assert set(service.get("networks", [])) <= set(compose["networks"]), name
        assert service.get("network_mode", "service:object-store") == "service:object-store", name
        assert set(service.get("depends_on", {})) <= set(compose["services"]), name
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"] or volume.startswith("./"), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "published beyond this machine by choice alone"
    for name in LONG_RUNNING:
        service = compose["services"][name]
        assert service["restart"] == "unless-stopped"
        stage = read_stages().get(service.get("build", {}).get("target", ""))
        assert "healthcheck" in service or (stage is not None and stage.last("HEALTHCHECK"))


def test_nobody_outside_reaches_the_scheduler() -> None:
    compose = interpolated(read_compose())
    assert compose["networks"]["cluster"]["internal"] is True
    for name in ("scheduler", "worker"):
        assert compose["services"][name]["networks"] == ["cluster"]
        assert "ports" not in compose["services"][name]
    assert compose["services"]["service"]["secrets"] == ["tokens"]


def test_the_object_store_tells_nobody_and_shows_s3_alone() -> None:
    command = read_compose()["services"]["object-store"]["command"]
    assert "-master.telemetry=false" in command
    assert "-ip.bind=127.0.0.1" in command
    assert "-s3.ip.bind=0.0.0.0" in command
    assert "-s3.autoCreateBucket=false" in command
    bucket = interpolated(read_compose())["services"]["service"]["command"][1].removeprefix("s3://").split("/")[0]
    assert f"s3.bucket.create -name {bucket}" in read_compose()["services"]["bucket"]["command"][0]


def test_a_worker_stops_itself_before_its_container_does() -> None:
    worker = interpolated(read_compose())["services"]["worker"]
    limit = worker["command"][worker["command"].index("--memory-limit") + 1]
    assert parse_bytes(limit) < parse_bytes(f"{worker['deploy']['resources']['limits']['memory']}iB")
    specs = dict(pod_specs())
    (container,) = specs["DaskCluster/dask worker"]["containers"]
    limit = container["args"][container["args"].index("--memory-limit") + 1]
    assert parse_bytes(limit) < parse_bytes(f"{container['resources']['limits']['memory']}B")


def test_every_variable_is_explained_and_no_secret_is_given() -> None:
    used = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text())) - {"OBJECT_STORE_IMAGE"}
    example = read_example_environment()
    assert used == set(example)
    assert [name for name, value in example.items() if not value] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (DOCKER / "compose.yaml").read_text()))
    assert {name: example[name] for name in defaults if name in example} == {
        name: value for name, value in defaults.items() if name in example
    }
    ignored = (DOCKER / ".gitignore").read_text().split()
    assert {".env", "tokens"} <= set(ignored)


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for stage in read_stages().values()
        for word, rest in stage.instructions
        if word == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    }
    assert copied == allowed
    assert all((DOCKER.parent / source).exists() for source in copied)


@pytest.mark.parametrize(("name", "spec"), list(pod_specs()), ids=lambda value: str(value)[:30])
def test_pods_keep_to_the_restricted_standard(name: str, spec: dict[str, object]) -> None:
    pod = spec["securityContext"]
    assert isinstance(pod, dict)
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in containers(spec):
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


def test_manifests_refer_to_one_another() -> None:
    manifests = read_manifests()
    kustomization = yaml.safe_load((DOCKER / "kubernetes" / "kustomization.yaml").read_text())
    files = {path.name for path in (DOCKER / "kubernetes").glob("*.yaml")}
    assert {*kustomization["resources"], *kustomization["configurations"]} <= files
    objects = {
        (document["kind"], document["metadata"]["name"]) for _, document in manifests if "metadata" in document
    }
    for _, spec in pod_specs():
        for container in containers(spec):
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    assert ("ConfigMap", source["configMapRef"]["name"]) in objects
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounts <= {volume["name"] for volume in spec.get("volumes", [])}
    kinds = {kind for kind, _ in objects}
    assert kinds >= {"Deployment", "Service", "DaskCluster", "NetworkPolicy", "PodDisruptionBudget", "Job"}


@pytest.mark.parametrize("script", sorted((DOCKER / "slurm").glob("*")), ids=lambda p: str(p.name))
def test_scripts_are_whole_and_stop_at_errors(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert "#SBATCH --requeue" in text
    first_command = text.index("set -euo pipefail")
    assert "#SBATCH" not in text[first_command:], "Slurm reads none after the first command"
