"""Figures: drawn for whatever a run holds, said in words, legible in both themes, the same every time."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure as Canvas
from PIL import Image

from streamsparse.errors import UsageError
from streamsparse.report.facts import Facts, NetworkPoint
from streamsparse.report.figures import figures, save_figure
from streamsparse.report.figures_svg import inline_svg, standalone_svg
from streamsparse.report.theme import DARK, HEAT, LIGHT, THEMES, contrast
from tests.report.example import broken_facts, empty_facts, hostile_facts, lenet_facts, network_facts, wide_facts

SVG = "{http://www.w3.org/2000/svg}"


def names(facts: Facts) -> list[str]:
    return [figure.name for figure in figures(facts)]


def test_a_whole_run_has_every_figure() -> None:
    assert names(lenet_facts()) == [
        "pareto-parameters",
        "pareto-macs",
        "channels",
        "layer-parameters",
        "layer-macs",
        "errors",
        "layer-errors",
        "paths",
        "sensitivity",
        "convergence-1-conv1",
        "sparsification-1-conv1",
        "convergence-2-conv2",
        "sparsification-2-conv2",
        "convergence-3-fc1",
        "sparsification-3-fc1",
        "condition",
        "patches",
        "excess",
        "stages-seconds",
        "stages-memory",
    ]


def test_a_figure_without_data_is_left_out() -> None:
    assert names(empty_facts()) == []
    assert "errors" not in names(broken_facts())
    assert names(replace(empty_facts(), stages=lenet_facts().stages)) == ["stages-seconds", "stages-memory"]


@pytest.mark.parametrize(
    "facts",
    [
        lenet_facts(),
        broken_facts(),
        network_facts({"only": (3, 1)}, title="one", taps=1),
        hostile_facts('<script>"&\x00\ud800$x_$ 深層'),
    ],
    ids=["lenet", "broken", "one layer", "hostile"],
)
def test_every_figure_is_drawn_without_a_warning(facts: Facts) -> None:
    for figure in figures(facts):
        root = ElementTree.fromstring(standalone_svg(figure))
        assert root.find(f"{SVG}title").text  # type: ignore[union-attr]
        assert any(character.isdigit() for character in root.find(f"{SVG}desc").text or "")  # type: ignore[union-attr]
        assert len(list(root.iter(f"{SVG}path"))) > 3


def test_two_hundred_layers_are_drawn_on_pages_that_can_be_printed() -> None:
    drawn = {figure.name: figure for figure in figures(wide_facts())}
    assert {"channels-1", "channels-4"} <= drawn.keys()
    assert "channels-5" not in drawn
    assert max(figure.size[1] / figure.size[0] for figure in drawn.values()) < 2.8
    assert "of 200 groups" in drawn["paths"].caption
    svg = inline_svg(drawn["channels-2"])
    texts = [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]
    labels = [text for text in texts if "denselayer" in text]
    assert len(labels) == len(set(labels)) == 51  # shortened, and still told apart


def test_titles_and_alternatives_say_the_numbers() -> None:
    facts = lenet_facts()
    said = {figure.name: figure for figure in figures(facts)}
    assert "9 of 20 output channels stay" in said["channels"].alt
    assert "61 of 500" in said["channels"].title
    assert "94.2\u00a0% fewer parameters" in said["pareto-parameters"].title
    assert (
        "accelerated, the alternation stops after 45 iterations; plain, after 600"
        in said["convergence-1-conv1"].title
    )
    assert "capture: 41.2\u00a0s" in said["stages-seconds"].alt


def test_errors_say_that_they_are_squared_and_what_they_hold() -> None:
    """As the CSV does; a sequential refit's predictions hold the errors of the layers before."""
    for mode, what in (("sequential", "behind the pruned layers"), ("independent", "for it alone")):
        captions = {figure.name: figure.caption for figure in figures(replace(lenet_facts(), mode=mode))}
        assert what in captions["errors"]
        assert "squared" in captions["errors"]
        assert "squared" in captions["paths"]


def test_nothing_is_marked_as_chosen_before_there_is_a_solution() -> None:
    facts = lenet_facts()
    whole = tuple(replace(group, kept=tuple(range(group.size))) for group in facts.groups)
    facts = replace(facts, pruned=None, predicted_loss=None, chosen=None, groups=whole, layers=())
    for figure in figures(facts):
        assert "{" not in figure.caption + figure.alt + figure.title
        if figure.section == "paths":
            words = inline_svg(figure) + figure.alt + figure.caption
            assert "chosen" not in words
            assert "20 of 20" not in words


def test_no_name_hides_a_point_of_the_pareto_curve() -> None:
    facts = lenet_facts()
    sizes = (0.0005, 0.0024, 0.011, 0.05, 0.106, 0.2, 0.224, 0.473, 1.0)
    losses = (1.3, 0.27, 0.06, 0.014, 0.0027, 0.001, 0.00078, 0.00016, 0.0)  # as VGG-16 has them
    whole = facts.original
    points = tuple(
        NetworkPoint(replace(whole, parameters=int(one * whole.parameters), macs=int(one**0.4 * whole.macs)), loss)
        for one, loss in zip(sizes, losses, strict=True)
    )
    facts = replace(facts, points=points, pruned=points[5].costs, predicted_loss=losses[5], measured=())
    for figure in figures(facts)[:2]:
        canvas = Canvas(figsize=figure.size, layout="constrained")
        figure.draw(canvas, LIGHT)
        canvas.draw_without_rendering()
        axes = canvas.axes[0]
        for name in axes.texts:
            box = name.get_window_extent()
            for line in axes.lines:
                for across, up in axes.transData.transform(line.get_xydata()):
                    assert not box.contains(across, up), (figure.name, name.get_text(), line.get_xydata())


@pytest.mark.parametrize("factor", [0.4, 0.8, 1.0, 1.2, 1.6, 3.0])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_the_names_of_what_was_predicted_and_measured_do_not_meet(factor: float, fraction: float) -> None:
    facts = lenet_facts()
    whole = facts.original
    points = tuple(
        NetworkPoint(
            replace(whole, parameters=int(one * whole.parameters), macs=int(one * whole.macs)), 0.01 / one**2
        )
        for one in (0.05, 0.1, 0.2, 0.5, 0.9)
    )
    chosen = next(point for point in points if point.costs.parameters == int(fraction * whole.parameters))
    own = replace(facts.measured[0], divergence=factor * chosen.predicted_loss, costs=chosen.costs)
    facts = replace(
        facts, points=points, pruned=chosen.costs, predicted_loss=chosen.predicted_loss, measured=(own,)
    )
    for figure in figures(facts)[:2]:
        canvas = Canvas(figsize=figure.size, layout="constrained")
        figure.draw(canvas, LIGHT)
        canvas.draw_without_rendering()
        first, second = (name.get_window_extent() for name in canvas.axes[0].texts)
        assert not first.overlaps(second), figure.name


def test_the_most_sensitive_group_needs_most_channels_for_the_same_loss() -> None:
    """Every group is measured at counts of its own: a wide one's may all be far below half of its channels."""
    facts = lenet_facts()
    measured = {
        "conv1": ((2, 0.8), (6, 0.08), (10, 0.008), (16, 0.001)),  # of 20
        "conv2": ((3, 0.6), (10, 0.04), (20, 0.002)),  # of 50
        "fc1": ((4, 0.9), (8, 0.09), (12, 0.009)),  # of 500: at 2.4 % of its channels as much as conv1 at half
    }
    groups = tuple(replace(group, sensitivity=measured[group.name]) for group in facts.groups)
    figure = next(one for one in figures(replace(facts, groups=groups)) if one.name == "sensitivity")
    assert figure.title == "conv1 is the most sensitive group: cut to 31.2\u00a0% it costs 0.07 nats per image"
    assert "half" not in figure.alt
    assert "fc1: 1.7" in figure.alt


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_colours_are_legible(theme: object) -> None:
    colours = asdict(theme)  # type: ignore[call-overload]
    for role in ("ink", "muted"):
        for behind in ("paper", "surface"):
            assert contrast(colours[role], colours[behind]) >= 4.5, (role, behind)
    for role in ("edge", "blue", "orange", "green", "purple"):
        assert contrast(colours[role], colours["paper"]) >= 3, role
    assert contrast(HEAT, colours["paper"]) >= 3
    assert contrast(colours["blue"], colours["fill"]) >= 3  # filled bars in front of outlined ones


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # the well-known near miss


def test_pictures_are_files_in_the_colours_of_their_theme(tmp_path: Path) -> None:
    figure = figures(lenet_facts())[2]
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        save_figure(figure, tmp_path / f"{name}.png", name)
        save_figure(figure, tmp_path / f"{name}.svg", name)
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size[0] == round(figure.size[0] * 200)
            assert "#{:02x}{:02x}{:02x}".format(*picture.convert("RGB").getpixel((1, 1))) == theme.paper  # type: ignore[misc]
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
        assert theme.ink in (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
    assert "fc1" in (tmp_path / "light.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring((tmp_path / "light.svg").read_text(encoding="utf-8"))
    assert root.attrib["width"] == f"{figure.size[0] * 72:g}pt"


def test_other_formats_and_themes_are_refused(tmp_path: Path) -> None:
    figure = figures(lenet_facts())[0]
    with pytest.raises(UsageError, match="PNG or SVG"):
        save_figure(figure, tmp_path / "figure.gif")
    with pytest.raises(UsageError, match="no such theme"):
        save_figure(figure, tmp_path / "figure.svg", "sepia")
    assert not list(tmp_path.iterdir())


def test_inline_drawings_have_no_colour_of_their_own_and_name_their_ids() -> None:
    for figure in figures(lenet_facts()):
        svg = inline_svg(figure)
        root = ElementTree.fromstring(svg)
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert all((name or "").startswith(f"{figure.name}-") for name in ids)
        assert len(ids) == len(set(ids))
        assert "0badc" not in svg
        assert "#" not in svg.replace("url(#", "").replace('href="#', "").replace("&#", "") or "image" in svg
        assert "var(--muted)" in svg
        assert not list(root.iter("style"))
        assert not list(root.iter("metadata"))


def test_bars_carry_tool_tips() -> None:
    figure = next(figure for figure in figures(lenet_facts()) if figure.name == "channels")
    titles = [element.text for element in ElementTree.fromstring(inline_svg(figure)).iter("title")]
    assert "conv1: 9 of 20 output channels stay" in titles


def test_threads_and_the_users_settings_change_nothing() -> None:
    chosen = [figure for figure in figures(lenet_facts()) if figure.name in ("channels", "errors", "pareto-macs")]
    alone = [inline_svg(figure) for figure in chosen]
    before = matplotlib.rcParams["font.size"]
    with matplotlib.rc_context({"font.size": 23, "axes.facecolor": "red", "svg.fonttype": "path"}):
        with ThreadPoolExecutor(3) as threads:
            together = list(threads.map(inline_svg, chosen))
        assert matplotlib.rcParams["font.size"] == 23
    assert together == alone
    assert matplotlib.rcParams["font.size"] == before


@settings(max_examples=10)
@given(
    losses=st.lists(
        st.floats(max_value=1e25) | st.sampled_from([0.0, -1.0, 5e-324, float("nan"), float("inf")]),
        min_size=0,
        max_size=6,
    ),
    unit=st.sampled_from(["nats per image", "error"]),
)
def test_any_losses_are_drawn(losses: list[float], unit: str) -> None:
    facts = lenet_facts()
    points = tuple(NetworkPoint(facts.original, loss) for loss in losses)
    for figure in figures(replace(facts, points=points, loss_unit=unit, layers=(), groups=(), walks=(), stages=())):
        assert inline_svg(figure).startswith("<svg")
