"""What the CIFAR experiments show: the paper's figures beside ours, on the terminal and as a page with its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from pipelines.cifar_experiment import Request
from pipelines.cifar_paper import Cut, Printed
from pipelines.cifar_stages import Settings
from pipelines.cifar_tuning import tuning_in_words
from pipelines.lenet_tables import environment, percent
from pipelines.pages import write_page
from streamsparse.cli.console import print_table, say, size_text

Rows = list[tuple[str, ...]]
HEADINGS: Final = (
    "network", "parameters", "sparsity", "paper", "local", "paper", "one-shot", "paper", "tuned", "paper",
    "scratch", "faster", "paper", "MACs", "on disk", "paper",
)  # fmt: skip
EPOCHS: Final = (0, 1, 2, 5, 10, 20, 30, 50, 100, 150, 200, 250, 280, 300)
NOTHING: Final = Printed(0.0)


def comparison_rows(summary: dict[str, Any], request: Request) -> Rows:
    """One row for each network under `HEADINGS`, the original first; paper's figures stand right of ours."""
    first = summary["baseline"]
    printed = request.network.printed
    none = "–"
    rows: Rows = [
        ("original", f"{first['parameters']:,}", none, none, none, none, percent(first["accuracy"]),
         percent(printed.accuracy), percent(first.get("accuracy_fine_tuned")), none, none, none, none,
         _millions(first["macs"]), size_text(first["bytes"]), _megabytes(printed))
    ]  # fmt: skip
    rows += [_row(model, cut) for model, cut in zip(summary["models"], request.cuts, strict=True)]
    return rows


def _row(model: dict[str, Any], cut: Cut) -> tuple[str, ...]:
    printed = cut.printed or NOTHING
    faster = " / ".join(f"{ratio:.2f}×" for ratio in model["speed_up"].values())
    return (
        cut.name,
        f"{model['parameters']:,}",
        percent(model["sparsity"]),
        percent(printed.sparsity),
        percent(model["local_sparsity"]),
        percent(printed.local_sparsity),
        percent(model["accuracy_one_shot"]),
        percent(printed.accuracy or None),
        percent(model.get("accuracy_fine_tuned")),
        ", ".join(percent(value) + (f" ({epoch})" if epoch else "") for epoch, value in printed.tuned.items())
        or "–",
        percent(model.get("accuracy_from_scratch")),
        faster,
        f"{printed.speed_up:.2f}×" if printed.speed_up else "–",
        _millions(model["macs"]),
        size_text(model["bytes"]),
        _megabytes(printed),
    )


def filled(rows: Rows) -> Rows:
    """The rows, headings first, without columns that say nothing; ours stays where the paper's beside it speaks."""
    kept: list[int] = []
    for place in reversed(range(len(rows[0]))):
        says = any(row[place] != "–" for row in rows[1:])
        if says or (place + 1 in kept and rows[0][place + 1].startswith("paper")):
            kept.append(place)
    return [tuple(row[place] for place in reversed(kept)) for row in rows]


def epoch_rows(summary: dict[str, Any], request: Request) -> Rows:
    """Accuracy by epoch, a heading row first: fine-tuned and from scratch, and the paper's (tables 5 and 6)."""
    curves: dict[str, dict[int, float]] = {}
    original = {**summary["baseline"], "name": "original", "accuracy_one_shot": summary["baseline"]["accuracy"]}
    for model in (original, *summary["models"]):
        for what, words in (("fine_tuned", "fine-tuned"), ("from_scratch", "from scratch")):
            if found := model.get(f"accuracy_{what}_by_epoch"):
                start = {0: model["accuracy_one_shot"]} if what == "fine_tuned" else {}
                curves[f"{model['name']}, {words}"] = start | dict(enumerate(found, 1))
    if not curves:
        return []
    curves |= {f"paper's conv_all+fc, {words}": line for words, line in request.network.by_epoch.items()}
    last = {max(line) for line in curves.values()}
    shown = [n for n in sorted({*EPOCHS, *last}) if any(n in line for line in curves.values())]
    rows: Rows = [("epoch", *map(str, shown))]
    rows += [(name, *(percent(line.get(number)) for number in shown)) for name, line in curves.items()]
    return rows


def print_summary(summary: dict[str, Any], request: Request) -> None:
    """Tables on standard output."""
    title = f"{request.network.title} on {summary['data']['name']}"
    columns = ("network", "sparsity", "one-shot", "paper's one-shot", "tuned", "paper's tuned", "scratch", "faster")
    places = (0, 2, 6, 7, 8, 9, 10, 11)
    rows = [tuple(row[place] for place in places) for row in comparison_rows(summary, request)]
    headings, *rows = filled([columns, *rows])
    print_table(title, {name: "right" if name != "network" else "left" for name in headings}, rows)
    if (by_epoch := epoch_rows(summary, request)) and len(by_epoch[0]) < 14:
        print_table("Accuracy by epoch", dict.fromkeys(by_epoch[0], "right"), by_epoch[1:])
    say("Seconds by stage: " + _seconds(summary))


def print_plan(plan: dict[str, Any]) -> None:
    """What would be done."""
    rows = [(layer["layer"], _shape(layer["input_shape"]), _shape(layer["output_shape"]), str(layer["columns"]))
            for layer in plan["layers"]]  # fmt: skip
    title = f"{plan['network']} on {plan['dataset']} in {plan['data']}: statistics of {plan['images']:,} images"
    print_table(title, {"layer": "left", "input": "right", "output": "right", "columns": "right"}, rows)
    networks = [
        (model["name"], ", ".join(model["groups"]), "by hand" if model["sparsity"] is None else
         f"at most {model['parameters']:,}") for model in plan["models"]
    ]  # fmt: skip
    print_table("Improve, refit in order, write, evaluate", dict.fromkeys(("network", "cut", "parameters"), "left"),
                networks)  # fmt: skip
    if plan["download"]:
        say(f"The data are not there: they would be downloaded to {plan['data']}.")
    say(f"Original: {plan['original']}. Fine-tuning: {plan['fine_tuning']}. From scratch: "
        f"{plan['from_scratch_epochs']} epochs. Nothing was touched.")  # fmt: skip


def markdown_page(summary: dict[str, Any], request: Request, typed: str) -> str:
    """The comparison as a page, with what it takes to repeat it."""
    about, settings, data = environment(), request.settings, summary["data"]
    comparison = filled([HEADINGS, *comparison_rows(summary, request)])
    lines = [
        f"# {request.network.title} on {data['name']}: the paper's cuts, and further",
        "",
        *_table(comparison),
        "",
        _legend(summary, request, comparison[0]),
        "",
        f"Original: {summary['baseline']['origin']}.",
        "",
    ]
    if by_epoch := epoch_rows(summary, request):
        lines += ["## Accuracy by epoch", "", *_table(by_epoch), ""]
    lines += [
        f"Measured {about['date']} on {machine(settings.device)}, {about['threads']} thread(s); "
        + ", ".join(f"{name} {number}" for name, number in about["versions"].items()) + ".",
        f"Seconds by stage: {_seconds(summary)}.",
        "",
        f"    {typed}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _legend(summary: dict[str, Any], request: Request, columns: Sequence[str]) -> str:
    """What the columns that are there mean."""
    settings, data = request.settings, summary["data"]
    images = " and ".join(summary["models"][0]["speed_up"])
    sentences = {
        "one-shot": f"One-shot: {settings.images:,} training images without their labels, channels chosen in the "
        "layers named, weights refitted in order, nothing trained.",
        "tuned": _tuning_legend(settings, data["training"], "accuracy_fine_tuned" in summary["baseline"]),
        "scratch": "Scratch: the same architecture from fresh weights.",
        "local": "Local: of the parameters of the layers named.",
        "faster": f"Faster: measured seconds before over after, for {images} images at once on {settings.device}.",
        "paper": "The paper's counts of channels (its table 3) are lost in the text at hand: the cuts meet its "
        "sparsities instead.",
    }
    shown = set(columns) if any(cut.printed for cut in request.cuts) else set(columns) - {"paper"}
    said = [f"Accuracy on {data['test']:,} test images."]
    if "paper" in columns and request.dataset != "cifar10":
        said.append("The paper's figures are for CIFAR-10.")
    return " ".join(said + [sentence for column, sentence in sentences.items() if column in shown])


def _tuning_legend(settings: Settings, images: int, compared: bool) -> str:
    if settings.tuning is None:
        return "Tuned: the paper's, with its number of epochs where the text tells; ours were not."
    fair = (
        "The original was tuned in the same way: what it gains, the epochs gain without pruning."
        if compared
        else "A tuned network has been trained longer than its original: to be above it does not show that "
        "pruning improves a network."
    )
    return (
        f"Tuned: {tuning_in_words(settings.tuning, settings.teacher_share)}, on {images:,} images; the paper's "
        f"with its number of epochs where the text tells. {fair}"
    )


def write_results(directory: Path, name: str, summary: dict[str, Any], request: Request, typed: str) -> None:
    """Write NAME.md and NAME.json, without the places where checkpoints lie on this machine."""
    models = [{k: v for k, v in model.items() if not k.startswith("checkpoint")} for model in summary["models"]]
    about = {**environment(), "device": machine(request.settings.device)}
    record = {**summary, "models": models, "environment": about, "command": typed}
    write_page(directory, name, markdown_page(summary, request, typed), record)


def machine(device: str) -> str:
    """Processor and, if it did the work, accelerator."""
    about = environment()
    processor = f"{about['machine']}, {about['cores']} cores"
    return f"{torch.cuda.get_device_name(device)} ({processor})" if device.startswith("cuda") else processor


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    sides = ("---", *("---:",) * (len(rows[0]) - 1))
    return ["| " + " | ".join(row) + " |" for row in (rows[0], sides, *rows[1:])]


def _seconds(summary: dict[str, Any]) -> str:
    return ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in summary["seconds"].items())


def _millions(macs: int) -> str:
    return f"{macs / 1e6:,.1f} M"


def _megabytes(printed: Printed) -> str:
    return f"{printed.megabytes:g} MB" if printed.megabytes else "–"


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
