"""`capture --until-converged`: its options, its plan and its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamsparse.cli.console import ProgressBars, print_json, print_table, say
from streamsparse.errors import UsageError

if TYPE_CHECKING:
    from streamsparse.adaptive import Convergence
    from streamsparse.capture import CaptureSettings

UntilConverged = Annotated[
    float | None,
    typer.Option(
        "--until-converged",
        metavar="TOL",
        help="End when held-out minus training error of every layer's refit is at most TOL and the held-out error "
        "moves by at most TOL, at two looks in a row; --images is the bound. Needs --sink statistics.",
    ),
]
At = Annotated[
    str,
    typer.Option(
        "--at", help="Working support of --until-converged: keep=X, the fraction of every group's channels."
    ),
]


def parse_at(text: str) -> float:
    """`keep=0.5` -> 0.5; the range is checked later."""
    name, _, value = text.partition("=")
    try:
        if name == "keep":
            return float(value)
    except ValueError:
        pass
    raise UsageError("This working support does not parse.", expected="keep=X", got=text, where="--at")


def show_looks(images: int, settings: CaptureSettings, tolerance: float, at: str, as_json: bool) -> CaptureSettings:
    """Say when the statistics would be looked at; returns the settings with the batches of such a capture."""
    from dataclasses import replace

    from streamsparse.adaptive import FIRST_LOOK_IMAGES, check_request, look_schedule

    check_request(tolerance, parse_at(at), settings)
    settings = replace(settings, batch_images=min(settings.batch_images, FIRST_LOOK_IMAGES))
    if not as_json:
        looks = ", ".join(f"{look:,}" for look in look_schedule(images, settings.batch_images))
        say(f"Looks after {looks} images, ending once every layer has converged to {tolerance:g} at {at}.")
    return settings


def capture(
    run: str,
    model: Any,
    dataset: Any,
    tolerance: float,
    at: str,
    *,
    images: int,
    seed: int,
    settings: CaptureSettings,
    subject: Any,
    overwrite: bool,
    bars: ProgressBars,
    as_json: bool,
) -> None:
    """Capture and show what was found."""
    from streamsparse.adaptive import capture_until_converged

    found = capture_until_converged(
        model, dataset, run, tolerance=tolerance, keep_fraction=parse_at(at), images=images, seed=seed,
        settings=settings, subject=subject, overwrite=overwrite, on_event=bars,
    )  # fmt: skip
    if as_json:
        print_json({"run": run, "report": found, "seconds": bars.seconds})
    else:
        _show(run, found)


def _show(run: str, found: Convergence) -> None:
    rows = []
    for layer in found.layers:
        last = next((look for look in reversed(layer.looks) if look.held_out_error is not None), None)
        errors = ("", "") if last is None else (_number(last.training_error), _number(last.held_out_error))
        bar = "" if last is None else f"± {_number(last.error_bar)}"
        used = "not yet" if layer.images is None else f"{layer.images:,}"
        rows.append((layer.layer, f"{layer.kept} of {layer.inputs}", used, *errors, bar))
    columns = {
        "layer": "left", "inputs kept": "right", "converged at": "right", "training error": "right",
        "held-out error": "right", "over folds": "right",
    }  # fmt: skip
    ending = "all layers converged" if found.converged else "the bound was reached before all layers converged"
    print_table(f"{found.images:,} images: {ending} to {found.request.tolerance:g}", columns, rows)
    say(f"Next: streamsparse accumulate {run}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
