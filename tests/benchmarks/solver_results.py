"""Results of the solver's benchmark: what they hold, the figures to compare, tables."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from streamsparse.kernels.pareto import FoundBy
from tests.benchmarks.machine import about

RESULTS = Path(__file__).parent / "results"
KEYS = {
    "paths": (
        "path_seconds_512x9", "path_cpu_seconds_512x9", "vgg16_seconds", "vgg16_cpu_seconds", "peak_grams",
    ),
    "alternations": ("w_steps_ratio", "w_steps_ratio_min", "w_steps_ratio_counting_inversions", "cpu_ratio"),
    "searches": ("settings_1000_seconds", "settings_1000_cpu_seconds", "settings_1000_layer"),
}  # fmt: skip
PARTS = tuple(KEYS)


@dataclass(frozen=True)
class PathResult:
    """One group's path; memory in Grams of its widest consumer."""

    group: str
    layer: str
    seconds: float
    cpu_seconds: float
    peak_grams: float
    methods: dict[FoundBy, int]


@dataclass(frozen=True)
class AlternationResult:
    """W-steps and CPU seconds to the same loss."""

    group: str
    layer: str
    eps_l2: float
    eps_h: float
    plain_steps: int
    plain_converged: bool
    plain_seconds: float
    accelerated_steps: int
    inversions: int
    accelerated_seconds: float
    loss: float

    @property
    def ratio(self) -> float:
        return self.plain_steps / self.accelerated_steps

    @property
    def ratio_counting_inversions(self) -> float:
        return self.plain_steps / (self.accelerated_steps + self.inversions)


@dataclass(frozen=True)
class SearchResult:
    """Many settings on one group."""

    group: str
    layer: str
    settings: int
    supports: int
    w_steps: int
    seconds: float
    cpu_seconds: float


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


@dataclass
class Figures:
    """All results of a run (mutable)."""

    subject: str
    paths: list[PathResult]
    alternations: list[AlternationResult]
    searches: list[SearchResult]

    def tell(self, result: PathResult | AlternationResult | SearchResult) -> None:
        """Keep a result and say it."""
        lists = {PathResult: self.paths, AlternationResult: self.alternations, SearchResult: self.searches}
        lists[type(result)].append(result)  # type: ignore[attr-defined]
        print(asdict(result), file=sys.stderr, flush=True)

    def summary(self) -> dict[str, float | str | None]:
        """The figures to compare; None for those that were not measured."""
        found: dict[str, float | str | None] = dict.fromkeys(key for keys in KEYS.values() for key in keys)
        if self.paths:
            widest = max(self.paths, key=lambda each: each.cpu_seconds)
            wide = widest.layer == "512x9"
            found["path_seconds_512x9"] = widest.seconds if wide else None
            found["path_cpu_seconds_512x9"] = widest.cpu_seconds if wide else None
            found["vgg16_seconds"] = sum(each.seconds for each in self.paths) if len(self.paths) > 1 else None
            found["vgg16_cpu_seconds"] = (
                sum(each.cpu_seconds for each in self.paths) if len(self.paths) > 1 else None
            )
            found["peak_grams"] = widest.peak_grams
        if self.alternations:
            all_counted = [each.ratio_counting_inversions for each in self.alternations]
            found["w_steps_ratio"] = geometric_mean([each.ratio for each in self.alternations])
            found["w_steps_ratio_min"] = min(each.ratio for each in self.alternations)
            found["w_steps_ratio_counting_inversions"] = geometric_mean(all_counted)
            found["cpu_ratio"] = geometric_mean(
                [e.plain_seconds / e.accelerated_seconds for e in self.alternations]
            )
        if self.searches:
            found["settings_1000_seconds"] = self.searches[0].seconds
            found["settings_1000_cpu_seconds"] = self.searches[0].cpu_seconds
            found["settings_1000_layer"] = self.searches[0].layer
        return found


def table(rows: list[dict[str, object]]) -> list[str]:
    """Markdown."""
    if not rows:
        return []
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return [*lines, *("| " + " | ".join(shown(value) for value in row.values()) + " |" for row in rows), ""]


def shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {number}" for key, number in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(figures: Figures, threads: int) -> None:
    """Commit the figures, as tables and as JSON; of parts that were not measured now, what was written before."""
    target = RESULTS / "solver.json"
    known = json.loads(target.read_text()) if target.exists() else {"parts": {}}
    facts: dict[str, object] = {**about(), "subject": figures.subject, "blas_threads": threads}
    summary = figures.summary()
    for part in PARTS:
        results = [asdict(each) for each in getattr(figures, part)]
        if results:
            own = {key: value for key, value in summary.items() if key in KEYS[part] and value is not None}
            known["parts"][part] = {"about": facts, "summary": own, "results": results}
    RESULTS.mkdir(exist_ok=True)
    target.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    lines = ["# The solver", ""]
    for part, content in known["parts"].items():
        lines += [
            f"## {part.capitalize()}",
            "",
            *(f"{key}: {value}  " for key, value in content["about"].items()),
            "",
        ]
        lines += [*(f"- {key}: {shown(value)}" for key, value in content["summary"].items()), ""]
        lines += table(content["results"])
    (RESULTS / "solver.md").write_text("\n".join(lines).rstrip() + "\n")
