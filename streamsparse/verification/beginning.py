"""What a run began with: its manifest and the original weights."""

from __future__ import annotations

from typing import Any

import torch

from streamsparse.intake.captured import read_captured
from streamsparse.store import layout
from streamsparse.verification.findings import Findings, Subject
from streamsparse.write.safetensors_file import decode_tensors

SINKS = ("activations", "statistics", "merged")
_ENTRIES: dict[str, type | tuple[type, ...]] = {
    "created": str,
    "versions": dict,
    "model": dict,
    "data": dict,
    "sink": str,
    "layers": list,
    "graph": dict,
    "costs": dict,
}
_MODEL = {"class": str, "digest": str, "weights_sha256": str}
_DATA = {"images": int, "shape": list, "digest": str}
_REMEDY = "restore manifest.json from a copy; without one, capture again into a new RUN"


def check_manifest(subject: Subject, findings: Findings) -> None:
    """Required entries and their types, the channel graph, the cost model, and layers that the graph knows."""
    manifest: dict[str, Any] = {}
    with findings.guarding(layout.MANIFEST, _REMEDY):
        manifest = subject.run.manifest()
    for section, entries in ((manifest, _ENTRIES), ("model", _MODEL), ("data", _DATA)):
        found = section if isinstance(section, dict) else manifest.get(section)
        if manifest and isinstance(found, dict):
            _check_entries(found, entries, "" if isinstance(section, dict) else f"{section}.", findings)
    merged = isinstance(manifest.get("data"), dict) and "sources" in manifest["data"]
    if manifest and isinstance(manifest.get("data"), dict):  # a merged run has the seeds of its sources
        sources = manifest["data"]["sources"] if merged else [manifest["data"]]
        for number, source in enumerate(sources if isinstance(sources, list) else [sources]):
            prefix = f"data.sources[{number}]." if merged else "data."
            _check_entries(source if isinstance(source, dict) else {}, {"seed": int}, prefix, findings)
    if not manifest or findings.problems:
        return
    findings.expect(
        manifest["sink"] in SINKS, layout.MANIFEST, "The manifest names an unknown sink.",
        expected=" | ".join(SINKS), got=manifest["sink"], remedy=_REMEDY,
    )  # fmt: skip
    with findings.guarding(layout.MANIFEST, _REMEDY):
        graph = read_captured(subject.run).graph
        unknown = [layer for layer in manifest["layers"] if layer not in graph.layers]
        findings.expect(
            not unknown, layout.MANIFEST, "Captured layers are not in the manifest's channel graph.",
            expected="layers of the graph", got=", ".join(map(str, unknown)), remedy=_REMEDY,
        )  # fmt: skip


def check_weights(subject: Subject, findings: Findings) -> None:
    """The original weights' digest and every tensor in them, which must be finite."""
    with findings.guarding(layout.WEIGHTS, "restore the file from a copy, or capture again"):
        tensors = decode_tensors(subject.run.weights())
        broken = [
            name
            for name, tensor in tensors.items()
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
        ]
        findings.expect(
            not broken, layout.WEIGHTS, "The original weights are not all finite.",
            expected="finite weights", got=f"NaN or infinity in {', '.join(broken)}", remedy="capture again",
        )  # fmt: skip


def _check_entries(found: dict[str, Any], entries: Any, prefix: str, findings: Findings) -> None:
    for name, kind in entries.items():
        value = found.get(name)
        findings.expect(
            isinstance(value, kind) and not isinstance(value, bool), layout.MANIFEST,
            f"The manifest's entry '{prefix}{name}' is missing or of another type.",
            expected=kind.__name__, got="nothing" if name not in found else repr(value)[:80], remedy=_REMEDY,
        )  # fmt: skip
