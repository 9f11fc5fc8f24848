"""Work on several threads: every job once, additions in order, errors raised, the same sums as one thread."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamsparse.kernels.gram_blocks import empty_block, split_blocks, update_block
from streamsparse.kernels.parallel import Addition, job_threads, run_in_turns, run_jobs
from streamsparse.kernels.shift_sums import empty_shifts, finish
from streamsparse.kernels.shifts import update_shifts
from streamsparse.types import LayerGeometry
from tests.kernels.test_gram_blocks import wide_geometries
from tests.kernels.test_shifts import activations, convolution, linear

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_job_runs_once(threads: int, count: int) -> None:
    torch.set_num_threads(threads)
    done: list[int] = []
    run_jobs([lambda number=number: done.append(number) for number in range(count)], CPU)  # type: ignore[misc]
    assert sorted(done) == list(range(count))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [1, 3])
def test_additions_are_made_in_the_order_of_their_tasks(threads: int) -> None:
    torch.set_num_threads(threads)
    added: list[int] = []

    def task(number: int) -> Iterator[Addition]:
        time.sleep(0.002 * (number % 3 == 0))  # the first of three is the last to be computed
        yield lambda: added.append(2 * number)
        yield lambda: added.append(2 * number + 1)

    run_in_turns([lambda number=number: task(number) for number in range(20)], CPU)  # type: ignore[misc]
    assert added == list(range(40))


@pytest.mark.parametrize("threads", [1, 2])
def test_errors_are_raised_and_the_threads_go_on_to_serve(threads: int) -> None:
    torch.set_num_threads(threads)

    def failing() -> Iterator[Addition]:
        raise ValueError("expected")

    with pytest.raises(ValueError, match="expected"):
        run_jobs([failing().__next__, lambda: None], CPU)
    with pytest.raises(ValueError, match="expected"):
        run_in_turns([list, failing, list], CPU)
    done: list[int] = []
    run_jobs([lambda: done.append(1), lambda: done.append(1)], CPU)
    assert done == [1, 1]


def test_threads_of_the_pool_work_alone_and_nested_jobs_do_not_wait_for_them() -> None:
    torch.set_num_threads(2)
    found: list[tuple[int, int]] = []

    def nested() -> None:
        torch.ones(1 << 18).sum()  # parallel, were it allowed
        run_jobs([lambda: found.append((torch.get_num_threads(), job_threads(CPU)))] * 2, CPU)

    run_jobs([nested] * 4, CPU)
    assert found == [(1, 1)] * 8


def test_the_modes_of_the_caller_hold_on_every_thread() -> None:
    torch.set_num_threads(2)
    with torch.inference_mode():
        total = torch.zeros(2)
        run_jobs([lambda: total[0].add_(1), lambda: total[1].add_(1)], CPU)
    assert total.tolist() == [1, 1]
    weight = torch.ones(3, requires_grad=True)
    results: list[Tensor] = []
    run_jobs([lambda: results.append(weight * 2)] * 2, CPU)
    assert not any(result.requires_grad for result in results)


def sums_with(threads: int, geometry: LayerGeometry, inputs: Tensor, outputs: Tensor) -> dict[str, Tensor]:
    torch.set_num_threads(threads)
    sums = empty_shifts(geometry)
    update_shifts(sums, inputs, outputs, geometry, block_bytes=2**16)
    return finish(sums, geometry).tensors()


@given(geometry=wide_geometries(), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_any_layer_has_the_same_sums_on_any_number_of_threads(geometry: LayerGeometry, seed: int) -> None:
    inputs, outputs = activations(geometry, 9, seed)
    wanted = sums_with(1, geometry, inputs, outputs)
    for name, value in sums_with(3, geometry, inputs, outputs).items():
        torch.testing.assert_close(value, wanted[name], rtol=2e-6, atol=1e-5)
    torch.set_num_threads(2)
    for block in split_blocks(geometry, 2):
        parts = [empty_block(geometry, block) for _ in range(2)]
        for part in parts:
            update_block(part, inputs, outputs, geometry, block)
        for name, value in parts[0].tensors().items():
            assert torch.equal(value, parts[1].tensors()[name])


@pytest.mark.parametrize(
    "geometry",
    [
        convolution((64, 48), (12, 12), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        convolution((64, 48), (12, 12), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
        convolution((3, 48), (24, 24), (5, 5), (2, 2), ((1, 1), (1, 1)), (1, 1)),
        linear(300, 40),
    ],
    ids=("terms", "pointwise", "patches", "linear"),
)
def test_two_threads_give_the_same_bits_every_time(geometry: LayerGeometry) -> None:
    inputs, outputs = activations(geometry, 1200 if geometry.kind == "linear" else 40)
    first = sums_with(2, geometry, inputs, outputs)
    for _ in range(5):
        again = sums_with(2, geometry, inputs, outputs)
        assert all(torch.equal(value, again[name]) for name, value in first.items())
