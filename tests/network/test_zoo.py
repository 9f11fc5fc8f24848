"""Models that people have: a fast subset at every run, the whole sweep with `-m slow`."""

from __future__ import annotations

import dataclasses

import pytest

from tests.benchmarks.network import QUICK, Result, measure, names

FAST = ("resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x1_0")
EXPECTED = {
    "resnet18": (12, 0),
    "resnet50": (37, 0),
    "densenet121": (120, 0),
    "mobilenet_v2": (25, 0),
    "mobilenet_v3_small": (27, 0),
    "regnet_y_400mf": (37, 0),
    "resnext50_32x4d": (21, 0),
    "squeezenet1_1": (25, 0),
    "shufflenet_v2_x1_0": (19, 1682),  # its trunk: shuffled halves tie all its channels together
    "timm:res2net50_26w_4s": (45, 0),
    "timm:cspdarknet53": (44, 0),
}


def check(name: str) -> Result:
    """The groups hold, and are as many as they are known to be."""
    result = measure(name)
    assert result.ok, dataclasses.asdict(result)
    if name in EXPECTED:
        assert (result.groups, result.frozen) == EXPECTED[name]
    return result


@pytest.mark.parametrize("name", FAST)
def test_fast_subset(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in dict.fromkeys([*QUICK, *names(quick=False)]) if name not in FAST]
)
def test_whole_sweep(name: str) -> None:
    check(name)
