"""Torch-Pruning and torch-kirigami as oracles: where their channel groups agree with ours, and who is right.

    python -m tests.benchmarks.oracles [--quick] [--json] [--write] [--models NAME ...]

Each tool removes one channel of up to six groups per model (of torchvision at 64 pixels, and the adversarial nets
of the tests), and of what is frozen here. Other entries of the convolutions' and linear layers' weights than ours
are decided in float64 on random weights: the tool's own pruning is applied and compared with the masked twin.

    same                 the same entries
    coarser, finer       right, and it removes more or fewer entries at once
    equivalent           right, by other entries
    resolves             right, where we freeze the channels
    silently wrong       runs, and computes something else than the masked twin
    crashes              raises while it follows, cuts or runs the model
    refuses              says that it does not cut these channels
    time limit           not done with the model after 40 s; its process is ended
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch, here and in the processes: as streamsparse.cli

from rich.console import Console
from rich.table import Table

from tests.benchmarks.network import processor
from tests.benchmarks.oracle_tools import TOOLS, Finding, findings, nets

MODELS = (
    "vgg11_bn", "vgg16", "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "densenet121",
    "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny",
    "squeezenet1_1", "googlenet", "inception_v3", "shufflenet_v2_x1_0", "regnet_y_400mf", "mnasnet1_0",
    "vit_b_16", "swin_t",
)  # fmt: skip
QUICK = ("resnet18", "mobilenet_v2", "Residual", "PaddedShortcut", "NhwcFlatten", "Tied")
PACKAGES = {"Torch-Pruning": "torch-pruning", "torch-kirigami": "torch-kirigami"}
LIMIT_S = 40
OWN_LIMIT_S = 300
RESULTS = Path(__file__).parent / "results"
RIGHT = ("same", "coarser", "finer", "equivalent", "resolves")


@dataclass(frozen=True)
class Answer:
    """What one tool makes of one model.

    Attributes:
        findings: per channel that was asked for.
        seconds: of the tool and of the comparisons.
        timed_out: it was ended before it had answered everything.
    """

    findings: tuple[Finding, ...]
    seconds: float
    timed_out: bool

    @property
    def counts(self) -> dict[str, int]:
        """Findings by verdict."""
        return dict(Counter(finding.verdict for finding in self.findings).most_common())


def serve(tool: str, subjects: Sequence[str], connection: Connection) -> None:
    """In a process of its own: answer for one subject after the other; None when the tool begins and ends each."""
    for subject in subjects:
        for finding in findings(tool, subject):
            connection.send(finding)
        connection.send(None)


def ask(tool: str, subjects: Sequence[str]) -> Iterator[tuple[str, Answer]]:
    """One tool's answers; a process that takes too long is ended, and the next subject gets a new one."""
    waiting = list(subjects)
    while waiting:
        ours, theirs = get_context("spawn").Pipe(duplex=False)
        process = get_context("spawn").Process(target=serve, args=(tool, tuple(waiting), theirs))
        process.start()
        theirs.close()
        while waiting:
            answer = _answer(ours)
            yield waiting.pop(0), answer
            if answer.timed_out:
                break
        process.kill()
        process.join()


def _answer(connection: Connection) -> Answer:
    """Findings between two Nones: the clock starts at the first, when our own groups have been found."""
    found: list[Finding] = []
    started, limit, begun = time.perf_counter(), OWN_LIMIT_S, False
    while True:
        if not connection.poll(max(0.0, started + limit - time.perf_counter())):
            late = Finding("the rest", "time limit", f"not done after {limit} s")
            return Answer((*found, late), time.perf_counter() - started, timed_out=True)
        try:
            finding = connection.recv()
        except EOFError:
            died = Finding("the rest", "crashes", "the process died")
            return Answer((*found, died), time.perf_counter() - started, timed_out=True)
        if finding is not None:
            found.append(finding)
        elif begun:
            return Answer(tuple(found), time.perf_counter() - started, timed_out=False)
        else:
            started, limit, begun = time.perf_counter(), LIMIT_S, True


Results = dict[str, dict[str, Answer]]
"""subject -> tool -> answer"""


def table(results: Results) -> Table:
    """Verdicts of all subjects."""
    shown = Table(title="Channel groups of other tools, judged in float64")
    for heading in ("model", *TOOLS):
        shown.add_column(heading, overflow="fold")
    for subject, by_tool in results.items():
        shown.add_row(subject, *(_text(by_tool.get(tool)) for tool in TOOLS))
    return shown


def _text(answer: Answer | None) -> str:
    return "" if answer is None else ", ".join(f"{count} {verdict}" for verdict, count in answer.counts.items())


def summary(results: Results) -> dict[str, dict[str, int]]:
    """Models by tool: all right, some silently wrong, ..."""
    totals: dict[str, Counter[str]] = {tool: Counter() for tool in TOOLS}
    for by_tool in results.values():
        for tool, answer in by_tool.items():
            verdicts = set(answer.counts)
            totals[tool]["models"] += 1
            totals[tool]["right everywhere"] += verdicts <= set(RIGHT)
            for verdict in verdicts - set(RIGHT):
                totals[tool][verdict] += 1
    return {tool: dict(counts) for tool, counts in totals.items()}


def write(results: Results) -> None:
    """Commit the verdicts: a table to read and the same as JSON."""
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", *PACKAGES.values())},
    }
    RESULTS.mkdir(exist_ok=True)
    plain = {
        subject: {tool: {**asdict(answer), "counts": answer.counts} for tool, answer in by_tool.items()}
        for subject, by_tool in results.items()
    }
    document = {"about": about, "summary": summary(results), "models": plain}
    (RESULTS / "oracles.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "oracles.md").write_text("\n".join(_page(about, results)) + "\n")


def _page(about: Mapping[str, object], results: Results) -> Iterator[str]:
    yield from ["# Channel groups: Torch-Pruning and torch-kirigami", ""]
    yield from [f"{key}: {value}  " for key, value in about.items()]
    yield from [
        "",
        "Verdicts are explained in `tests/benchmarks/oracles.py`.",
        "",
        "Number of models with at least one:",
        "",
    ]
    verdicts = sorted({verdict for counts in summary(results).values() for verdict in counts} - {"models"})
    yield f"| tool | models | {' | '.join(verdicts)} |"
    yield "|---|---:|" + "---:|" * len(verdicts)
    for tool, counts in summary(results).items():
        yield f"| {tool} | {counts.get('models', 0)} | {' | '.join(str(counts.get(v, 0)) for v in verdicts)} |"
    yield from ["", "| model | " + " | ".join(TOOLS) + " |", "|---|" + "---|" * len(TOOLS)]
    for subject, by_tool in results.items():
        yield f"| {subject} | " + " | ".join(_text(by_tool.get(tool)) for tool in TOOLS) + " |"
    yield from ["", "Where they are not right:", ""]
    for subject, by_tool in results.items():
        for tool, answer in by_tool.items():
            for finding in answer.findings:
                if finding.verdict not in RIGHT:
                    yield f"* {subject}, {finding.group}: {tool} {finding.verdict}. {finding.detail}".rstrip()


def main() -> None:
    """Ask the tools and print what they answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few models, under a minute")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--write", action="store_true", help="write the results that are committed")
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help="torchvision's NAME, or the class of an adversarial net"
    )
    arguments = parser.parse_args()
    console = Console(stderr=True, width=140)
    for package in PACKAGES.values():
        try:
            version(package)
        except PackageNotFoundError:
            sys.exit(f"skipped: {package} is not installed (the optional extra `benchmarks` has it)")
    subjects = arguments.models or (QUICK if arguments.quick else (*MODELS, *nets()))
    results: Results = {subject: {} for subject in subjects}

    def follow(tool: str) -> None:
        for subject, answer in ask(tool, subjects):
            results[subject][tool] = answer
            console.print(f"{tool} {subject} {_text(answer)} {answer.seconds:.1f} s", highlight=False)

    with ThreadPoolExecutor(len(TOOLS)) as pool:
        list(pool.map(follow, TOOLS))
    console.print(table(results))
    if arguments.write:
        write(results)
    if arguments.json:
        counts = {s: {tool: answer.counts for tool, answer in by_tool.items()} for s, by_tool in results.items()}
        print(json.dumps({"summary": summary(results), "models": counts}))


if __name__ == "__main__":
    main()
