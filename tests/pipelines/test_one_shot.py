"""The one-shot comparison, on few images of the embedded MNIST."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

from pipelines import networks, one_shot
from pipelines.one_shot_bench import Bench, Clock, Examination, prepare
from pipelines.one_shot_cuts import chosen, counts_of, cut, from_statistics, scores
from pipelines.one_shot_recipes import RECIPES, NotComparableError
from pipelines.one_shot_rivals import rival
from pipelines.one_shot_tables import page
from pipelines.one_shot_weights import Wanted, weights_of, whole
from streamsparse.errors import RunMismatchError
from streamsparse.evaluate import compare
from streamsparse.events import ignore
from streamsparse.kernels.folds import total
from streamsparse.kernels.regression import relative_error
from streamsparse.network.refitting import with_weights
from streamsparse.network.resize import stored_tensors
from streamsparse.solve import kept_inputs, refit_layers
from streamsparse.solve.originals import Originals
from streamsparse.solve.problems import group_problem, layer_moments
from streamsparse.store.statistics import Statistics

REQUEST = one_shot.Request("lenet", images=600, test_images=300, fewer_test_images=200, stages=2)
NAMES = (
    "paper refit full by-layer l2 l2-refit l2-global bn-scale full-independent fisher-independent error-independent"
)
ROWS = [RECIPES[name] for name in NAMES.split()]
APPLICATION = typer.Typer(add_completion=False)
APPLICATION.command()(one_shot.main)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("one-shot")


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    return prepare(
        networks.lenet(), folder / "seed-0", images=600, seed=0, stages=2, clock=Clock(), on_event=ignore
    )


@pytest.fixture(scope="module")
def kept(folder: Path, bench: Bench) -> tuple[Path, dict[str, Any]]:
    return folder, one_shot.study(REQUEST, folder, ROWS, [0.7], 1)


def test_refits_are_better_than_selections(kept: tuple[Path, dict[str, Any]]) -> None:
    cells = {name.split()[0]: cell for name, cell in kept[1]["cells"].items()}
    assert cells["full"]["pruned_accuracy"] > 0.95
    assert cells["full"]["divergence"] < cells["l2-refit"]["divergence"]
    assert cells["l2-refit"]["divergence"] < cells["l2"]["divergence"]
    assert cells["by-layer"]["divergence"] < cells["l2-refit"]["divergence"]
    assert cells["by-layer"]["divergence"] != cells["full"]["divergence"]  # two passes there
    allocations = [cells[f"{name}-independent"] for name in ("full", "fisher", "error")]
    assert len({tuple(cell["counts"].values()) for cell in allocations}) == 3
    assert min(cell["pruned_accuracy"] for cell in allocations) > 0.9
    assert cells["l2"]["counts"] == cells["full"]["counts"] != cells["refit"]["counts"]
    assert cells["paper"]["counts"] == cells["refit"]["counts"]
    assert "bn-scale" in cells["bn-scale"]["why_not"]
    limit = 0.3 * kept[1]["original_parameters"]
    assert all(0.9 * limit < cell["parameters"] <= limit for cell in cells.values() if "why_not" not in cell)


def test_a_second_call_makes_no_row_again(
    kept: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(one_shot, "make", refusing)
    assert one_shot.study(REQUEST, kept[0], ROWS, [0.7], 1) == kept[1]
    with pytest.raises(AssertionError):
        one_shot.study(REQUEST, kept[0], ROWS, [0.8], 1)


@pytest.mark.slow
def test_the_papers_path_is_walked_for_rows_that_ask_for_it(
    kept: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    asked = one_shot.Request("lenet", images=200, test_images=100, fewer_test_images=100, stages=2)
    rows = one_shot.study(asked, tmp_path, [RECIPES["full-independent"]], [0.7], 1)
    assert set(kept[1]["seconds"]["0"]) - set(rows["seconds"]["0"]) == {"entropic paths"}
    assert not list(tmp_path.glob("*entropic*"))


def test_a_clock_keeps_the_first_time_as_soon_as_it_is_known() -> None:
    kept: list[dict[str, float]] = []
    clock = Clock(keep=lambda: kept.append(dict(clock.seconds)))
    with pytest.raises(KeyboardInterrupt), clock.timing("capture"):
        raise KeyboardInterrupt
    for _ in range(2):
        with clock.timing("capture"):
            sum(range(1000))
    assert [set(one) for one in kept] == [{"capture"}] * 2
    assert kept[0]["capture"] == kept[1]["capture"] > 0


def test_rows_of_another_request_are_not_mixed(kept: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(RunMismatchError, match="another comparison"):
        one_shot.study(one_shot.Request("lenet", 600, 200, 200, 2), kept[0], ROWS, [0.7], 1)


def test_the_page_has_every_row_and_says_what_is_missing(kept: tuple[Path, dict[str, Any]]) -> None:
    text = page(kept[1], {"torch": torch.__version__}, "command")
    tables = len(("accuracy", "divergence", "agreement", "seconds"))
    for recipe in ROWS:
        made = recipe.name != "bn-scale"
        marked = f"| {recipe.text}{'' if recipe.on_all_images or not made else ' °'} |"
        assert text.count(marked) == tables, recipe
    assert "of 300 test images" in text
    assert "of 200 test images" in text
    assert "Not shown: bn-scale" in text
    assert f"{100 * kept[1]['cells']['full 0.7 0']['pruned_accuracy']:.2f}" in text
    assert "| calibration sample 1 | " in text


@pytest.mark.parametrize(
    ("recipes", "said"),
    [
        (["full", "by-layer"], "goes. Refits in order: 2 passes, but where a row says one per layer.\n"),
        (["by-layer", "refit"], "goes. Refits in order: one pass per layer.\n"),
        (["refit"], "goes.\n"),
    ],
)
def test_the_page_says_what_in_order_means(
    kept: tuple[Path, dict[str, Any]], recipes: list[str], said: str
) -> None:
    cells = {name: cell for name, cell in kept[1]["cells"].items() if name.split()[0] in recipes}
    text = page(
        {**kept[1], "recipes": {name: RECIPES[name].text for name in recipes}, "cells": cells}, {}, "command"
    )
    assert said in text
    shown = {name for name in recipes if f"\n{RECIPES[name].text}:\n" in text}  # counts of channels
    assert shown == set(recipes) - ({"by-layer"} if "full" in recipes else set())


def test_the_command_writes_the_page_and_the_command_that_repeats_it(
    kept: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    asked = ["--network lenet", "--images 600", "--test-images 300", "--fewer-test-images 200", "--stages 2"]
    asked += [*(f"--recipe {recipe.name}" for recipe in ROWS), "--sparsity 0.7"]
    options = [part for option in asked for part in option.split()]
    result = CliRunner().invoke(APPLICATION, [*options, f"--run={kept[0]}", f"--write={tmp_path}", "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["cells"] == kept[1]["cells"]
    assert json.loads((tmp_path / "one_shot_lenet.json").read_text()) == found
    text = (tmp_path / "one_shot_lenet.md").read_text()
    (typed,) = (f"{line} " for line in text.splitlines() if "pipelines.one_shot" in line)
    assert all(f" {option} " in typed for option in asked)


@pytest.mark.parametrize(
    ("wrong", "said"), [("--recipe=ful", "got: ful"), ("--sparsity=1", "0 < X < 1"), ("--network=lenett", "lenett")]
)
def test_what_the_command_cannot_do_is_said(wrong: str, said: str) -> None:
    result = CliRunner().invoke(APPLICATION, ["--network=lenet", wrong, "--json"])
    assert result.exit_code == 2
    assert said in result.stderr
    assert json.loads(result.stdout)["error"] == "UsageError"


def test_an_examination_is_a_comparison(bench: Bench) -> None:
    model = cut(bench, RECIPES["full-independent"], 0.8, 0).model
    test = bench.subjects.test
    first = TensorDataset(*(tensor[:300] for tensor in test.tensors))
    found, expected = (
        Examination.of(bench.subjects, 300).of_pruned(model),
        compare(bench.subjects.model, model, first),
    )
    assert found.images == expected.images
    assert found.pruned_accuracy == pytest.approx(expected.pruned_accuracy)
    assert found.original_accuracy == pytest.approx(expected.original_accuracy)
    assert found.agreement == pytest.approx(expected.agreement)
    assert found.divergence == pytest.approx(expected.divergence, rel=1e-5)


def test_scaled_weights_are_those_of_a_point_with_an_exact_bias(bench: Bench) -> None:
    """At a point of the path the weights explain what its loss says; the mean of the responses is met."""
    statistics, graph = Statistics(bench.run), bench.captured.graph
    point = next(point for point in bench.paths["fc1"].points if 20 < len(point.support) < 100)
    keep = {"fc1": tuple(point.support.tolist())}
    wanted = [Wanted("scaled", keep, True), Wanted("exact", keep, False)]
    found = weights_of(bench.run, bench.captured, wanted, {"fc1": bench.paths["fc1"].points})
    weight, bias = whole(found["scaled"], bench.captured)["fc2"]
    assert bias is not None
    assert np.flatnonzero(np.abs(weight).sum(0)).tolist() == point.support.tolist()
    (problem,) = group_problem(graph.group("fc1"), graph.layers, statistics)
    error = relative_error(problem, np.arange(problem.positions), weight)
    exact = whole(found["exact"], bench.captured)["fc2"][0]
    assert relative_error(problem, np.arange(problem.positions), exact) < error < 1
    moments = layer_moments(total(statistics["fc2"]), bias=True)
    np.testing.assert_allclose(weight @ moments.mean_x[0] + bias, moments.mean_y[0], rtol=1e-5, atol=1e-6)


def test_channels_chosen_by_others(bench: Bench) -> None:
    """Norms are those of the filters; one threshold meets the budget and one more channel would not."""
    tensor = stored_tensors(bench.subjects.model)["conv1.weight"].detach()
    np.testing.assert_allclose(scores(bench, "l1", 0)["conv1"], tensor.abs().sum((1, 2, 3)).numpy(), rtol=1e-6)
    np.testing.assert_allclose(scores(bench, "l2", 0)["conv1"], tensor.flatten(1).norm(dim=1).numpy(), rtol=1e-6)
    with pytest.raises(NotComparableError, match="no such scores"):
        scores(bench, "bn-scale", 0)
    one, other = (chosen(bench, RECIPES["random"], 0.7, seed) for seed in (0, 1))
    assert one != other
    assert {name: len(positions) for name, positions in one.items()} == counts_of(bench, "loss", 0.7)
    costs, limit = bench.captured.costs, 0.3 * bench.captured.costs.parameters({})
    keep = chosen(bench, RECIPES["l2-global"], 0.7, 0)
    assert 0.9 * limit < costs.costs_of_keep(keep).parameters <= limit


def test_batch_normalisations_are_ranked_by_their_scale() -> None:
    from pipelines.one_shot_cuts import _norms, _score
    from streamsparse.network import find_groups

    model = networks.Resnet18().eval()
    for number, name in enumerate(("bn1", "layer1.0.bn2", "layer1.1.bn2")):
        model.get_parameter(f"{name}.weight").data[3] = -float(number + 2)
    group = find_groups(model, torch.zeros(1, 3, 32, 32)).group("conv1")
    found = _score(group, stored_tensors(model), _norms(model), "bn-scale")
    assert found[3] == 9
    assert (np.delete(found, 3) == 3).all()


@pytest.mark.parametrize("by", ["magnitude", "taylor"])
def test_torch_pruning_is_cut_to_the_same_size(bench: Bench, by: str) -> None:
    pytest.importorskip("torch_pruning")
    before = {name: tensor.clone() for name, tensor in bench.subjects.model.state_dict().items()}
    model = rival(bench, by, "global", 0.7)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 0.25 * 61_706 < parameters <= 0.3 * 61_706
    assert all(torch.equal(tensor, before[name]) for name, tensor in bench.subjects.model.state_dict().items())
    assert model.get_parameter("fc3.weight").shape[0] == 10


def test_weights_from_statistics_are_found_once_for_all_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And give the network that the refit of the solve stage gives, but for the choice of the ridge."""
    rows = [(RECIPES["full-independent"], 0.7), (RECIPES["l1-refit"], 0.7), (RECIPES["bn-scale-refit"], 0.7)]
    from_statistics(bench, rows, 0)
    monkeypatch.setattr("pipelines.one_shot_cuts.weights_of", None)
    for recipe, sparsity in rows[:2]:
        found = cut(bench, recipe, sparsity, 0)
        inputs = kept_inputs(bench.captured.graph, chosen(bench, recipe, sparsity, 0))
        refitted = refit_layers(
            bench.captured, Statistics(bench.run), list(inputs), inputs, Originals.of(bench.run)
        )
        twin = with_weights(bench.subjects.model, {layer.layer: (layer.weight, layer.bias) for layer in refitted})
        image = torch.as_tensor(bench.subjects.test[0:20][0])
        with torch.no_grad():
            expected = twin(image)
            assert float((found.model(image) - expected).norm() / expected.norm()) < 0.1
    with pytest.raises(NotComparableError):
        cut(bench, *rows[2], 0)
