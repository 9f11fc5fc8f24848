"""The top of the page: what was pruned, what it costs and gains, what to know before relying on it."""

from __future__ import annotations

from streamsparse.report.facts import Facts, Measured
from streamsparse.report.page_html import Html, element, joined, with_code
from streamsparse.report.wording import SPACE, compact, count, duration, fewer, known, number, percent, plural, size


def headline(facts: Facts) -> str:
    """The report in a sentence."""
    if facts.pruned is None:
        return f"{facts.title}: not pruned yet"
    saved = fewer(facts.original.parameters, facts.pruned.parameters)
    own = facts.own_measurement
    if own is not None and known(own.original_accuracy) and known(own.pruned_accuracy):
        return f"{facts.title}: {saved} parameters, {_points(own)}"
    return (
        f"{facts.title}: {saved} parameters, {fewer(facts.original.macs, facts.pruned.macs)} multiply-accumulates"
    )


def summary(facts: Facts) -> Html:
    """Headline, how it was made, tiles of figures, notes."""
    return element(
        "header",
        element("p", "Structured pruning by streamsparse", class_="eyebrow"),
        element("h1", headline(facts)),
        element("p", _lede(facts), class_="lede"),
        element("dl", *_tiles(facts), class_="tiles"),
        _notes(facts),
        class_="summary",
    )


def _lede(facts: Facts) -> Html:
    parts: list[str] = ["Run ", element("code", facts.run)]
    if facts.budget:
        parts += [", budget ", element("code", facts.budget)]
    if facts.mode:
        how = {
            "sequential": "weights re-estimated layer after layer, on inputs that the pruned layers before produce",
            "independent": "weights of each layer re-estimated on the original's inputs",
        }
        parts += ["; ", how.get(facts.mode, facts.mode)]
    if facts.recalibrated:
        parts.append("; BatchNorm statistics estimated anew")
    return joined([*parts, "."])


def _tiles(facts: Facts) -> list[Html]:
    before, after = facts.original, facts.pruned
    if after is None:
        return [
            _tile("Parameters", compact(before.parameters), count(before.parameters)),
            _tile("Multiply-accumulates", compact(before.macs), f"{count(before.macs)} per image"),
            _tile("Weights", size(before.bytes), f"{count(before.bytes)} bytes"),
        ]
    tiles = [
        _cost_tile(
            "Parameters", count(after.parameters), count(before.parameters), before.parameters, after.parameters
        ),
        _cost_tile(
            "Multiply-accumulates per image", compact(after.macs), compact(before.macs), before.macs, after.macs
        ),
        _cost_tile("Bytes of weights", size(after.bytes), size(before.bytes), before.bytes, after.bytes),
    ]
    own = facts.own_measurement
    return tiles + ([] if own is None else _measured_tiles(facts, own))


def _measured_tiles(facts: Facts, own: Measured) -> list[Html]:
    on = f"on {count(own.images)} images" + (f" of {own.data}" if own.data else "")
    same = f"{percent(own.agreement)} of images keep their class"
    if known(own.original_accuracy) and known(own.pruned_accuracy):
        accuracy = f"{100 * (own.pruned_accuracy or 0):.2f}{SPACE}%"
        detail = f"was {100 * (own.original_accuracy or 0):.2f}{SPACE}%: {_points(own)}, {on}; {same}"
        tiles = [_tile("Accuracy", accuracy, detail)]
    else:
        tiles = [_tile("Agreement", percent(own.agreement), f"of images keep their class, {on}")]
    if known(own.divergence):
        predicted = ""
        if facts.loss_unit.startswith("nats") and facts.predicted_loss is not None and known(facts.predicted_loss):
            predicted = f"; predicted: {number(facts.predicted_loss)}"
            if facts.improved_loss is not None:
                predicted += f", measured on calibration images: {number(facts.improved_loss)}"
        words = f"nats per image, Kullback–Leibler, from the original's class probabilities{predicted}"
        tiles.append(_tile("Divergence", number(own.divergence), words))
    if own.original_seconds is not None and own.pruned_seconds is not None:
        tiles.append(_latency_tile(own, own.original_seconds, own.pruned_seconds))
    return tiles


def _latency_tile(own: Measured, before: float, after: float) -> Html:
    times = "" if after <= 0 or not known(after) else f": {number(before / after)} times as fast"
    batch = "" if own.batch_images is None else f", {plural(own.batch_images, 'image')} at a time"
    device = f", on {own.device}" if own.device else ""
    larger = "".join(
        f"; {timed.images} at a time: {number(timed.original_seconds / timed.pruned_seconds)} times"
        for timed in own.larger_batches
        if timed.pruned_seconds > 0
    )
    words = f"was {duration(before)}{times}{batch}{larger}{device}"
    return _tile("Forward pass per image", duration(after), words)


def _cost_tile(name: str, after: str, before: str, was: float, now: float) -> Html:
    """With a bar as long as what is left."""
    left = now / was if was > 0 else 1.0
    times = f", {number(was / now)} times smaller" if 0 < now < was / 2 else ""
    detail = f"of {before}: {fewer(was, now)}{times}"
    bar = element("span", class_="left", style=f"--left: {100 * min(left, 1):.1f}%", aria_hidden="true")
    return _tile(name, after, detail, bar)


def _tile(name: str, value: str, detail: str, extra: Html | None = None) -> Html:
    words = element("dd", detail, class_="detail")
    bar = element("dd", extra) if extra else Html("")
    return element("div", element("dt", name), element("dd", value, class_="value"), bar, words, class_="tile")


def _points(own: Measured) -> str:
    """The accuracy's change: "0.52 points less accurate"."""
    change = 100 * ((own.pruned_accuracy or 0) - (own.original_accuracy or 0))
    if abs(change) < 0.005:
        return "equally accurate"
    return f"{abs(change):.2f} points {'more' if change > 0 else 'less'} accurate"


def _notes(facts: Facts) -> Html:
    if not facts.notes:
        return Html("")
    items = [element("li", with_code(note)) for note in facts.notes]
    title = element("h2", "Before you rely on it", id="notes")
    return element("section", title, element("ul", *items), class_="notes", aria_labelledby="notes")
