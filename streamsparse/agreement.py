"""Whether runs may be merged: one model, one channel graph, the same sums, and no image twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch

from streamsparse.errors import RunMismatchError
from streamsparse.events import Notice, OnEvent
from streamsparse.intake.captured import Captured
from streamsparse.store import Run
from streamsparse.store.statistics import Statistics
from streamsparse.types import ChannelGraph

Opened = Sequence[tuple[Run, Captured]]


def sources_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The samples that a run's statistics are over: its own one, or those that were merged into it."""
    data = dict(manifest["data"])
    sources: list[dict[str, Any]] = data.get("sources", [data])
    return sources


def sample_digest(manifest: Mapping[str, Any]) -> str:
    """The identity of the images that a run's statistics are over."""
    return str(manifest["data"]["digest"])


def samples_digest(sources: Sequence[Mapping[str, Any]]) -> str:
    """The identity of several samples together, in whatever order."""
    return hashlib.sha256("".join(sorted(source["digest"] for source in sources)).encode()).hexdigest()


def check_samples(opened: Opened) -> None:
    """Refuse runs that were captured over the very same images, which would count twice.

    Raises:
        RunMismatchError: two runs, or runs that were merged into them, share a sample.
    """
    for (first, one), (second, other) in combinations(opened, 2):
        shared = {source["digest"]: source for source in sources_of(one.manifest)}.keys() & {
            source["digest"] for source in sources_of(other.manifest)
        }
        if shared:
            about = next(source for source in sources_of(other.manifest) if source["digest"] in shared)
            raise RunMismatchError(
                "Two of the runs hold the same sample of images, which would count twice.",
                expected="different images in every run",
                got=f"{about['images']:,} images of {about['spec'] or 'the same data'}, seed {about['seed']}",
                where=f"{first.url} and {second.url}",
                remedy="leave one of them out, or capture it over other images (another --data or --seed)",
            )


def notice_overlaps(opened: Opened, on_event: OnEvent) -> None:
    """Say where samples of data sets that bear the same name and length would have images in common."""
    sources = [(run.url, source) for run, captured in opened for source in sources_of(captured.manifest)]
    for (first, one), (second, other) in combinations(sources, 2):
        if one["spec"] is not None and (one["spec"], one["length"]) == (other["spec"], other["length"]):
            common = len(set(_indices(one)) & set(_indices(other)))
            if common:
                on_event(
                    Notice(
                        "merge",
                        f"{first} and {second} both sample '{one['spec']}' ({one['length']:,} items): if it is one "
                        f"data set, {common:,} images count twice",
                    )
                )


def _indices(source: Mapping[str, Any]) -> list[int]:
    """Of the sample in its data set, see `calibration_images`."""
    generator = torch.Generator().manual_seed(source["seed"])
    return torch.randperm(source["length"], generator=generator)[: source["images"]].tolist()


def check_agreement(opened: Opened) -> None:
    """Refuse runs whose statistics are not sums of the same quantities.

    Raises:
        RunMismatchError: names what differs, and between which runs.
    """
    (first, one), *others = opened
    for second, other in others:
        where = f"{first.url} and {second.url}"
        _check_model(one.manifest["model"], other.manifest["model"], where)
        _check_graph(one.graph, other.graph, where)
        _equal("captured layers", one.manifest["layers"], other.manifest["layers"], where)
        for layer in one.manifest["layers"]:
            ours, theirs = (Statistics(run).description(layer) or {} for run in (first, second))
            _equal("number of folds", ours["folds"], theirs["folds"], f"layer '{layer}' of {where}")
            if "products" in ours and "products" in theirs:
                _equal("dtype of products", ours["products"], theirs["products"], f"layer '{layer}' of {where}")


def _check_model(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str) -> None:
    if ours["digest"] != theirs["digest"]:
        raise RunMismatchError(
            "The runs are of different models.",
            expected=f"{ours['class']} with weights {ours['digest'][:16]}…",
            got=f"{theirs['class']} with weights {theirs['digest'][:16]}…",
            where=where,
            remedy="capture every site with the same model and the same weights",
        )


def _check_graph(ours: ChannelGraph, theirs: ChannelGraph, where: str) -> None:
    """Trials and source lines vary from machine to machine; everything else must be the same."""
    for group, other in zip(ours.groups, theirs.groups, strict=False):
        if replace(group, trial_error=None) != replace(other, trial_error=None):
            _equal(
                "channel group", f"'{group.name}' of {group.size}", f"'{other.name}' of {other.size}", where, True
            )
    _equal("number of channel groups", len(ours.groups), len(theirs.groups), where)
    for name in ours.layers | theirs.layers:
        _equal(f"geometry of layer '{name}'", ours.layers.get(name), theirs.layers.get(name), where)


def _equal(what: str, ours: object, theirs: object, where: str, differs: bool = False) -> None:
    if differs or ours != theirs:
        raise RunMismatchError(
            f"The runs cannot be merged: another {what}.",
            expected=ours,
            got=theirs,
            where=where,
            remedy="capture and accumulate every site with the same settings and image size",
        )
