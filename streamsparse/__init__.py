"""Streaming, out-of-core structured pruning of convolutional networks.

    import streamsparse as ss

    result = ss.prune(model, loader, budget="params=0.2", run="runs/my-model")
    result.save("pruned/")
    model = ss.load("pruned/", original_constructor())

Names are imported when they are first used: torch takes seconds to load, `streamsparse --help` should not.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamsparse.accumulate import AccumulateSettings as AccumulateSettings
    from streamsparse.accumulate import accumulate as accumulate
    from streamsparse.adaptive import capture_until_converged as capture_until_converged
    from streamsparse.capture import CaptureSettings as CaptureSettings
    from streamsparse.capture import Subject as Subject
    from streamsparse.capture import capture as capture
    from streamsparse.client import Client as Client
    from streamsparse.errors import StreamsparseError as StreamsparseError
    from streamsparse.evaluation import Evaluation as Evaluation
    from streamsparse.evaluation import evaluate as evaluate
    from streamsparse.improvement import improve as improve
    from streamsparse.merging import merge as merge
    from streamsparse.network import find_groups as find_groups
    from streamsparse.reporting import Reported as Reported
    from streamsparse.reporting import report as report
    from streamsparse.run import Result as Result
    from streamsparse.run import prune as prune
    from streamsparse.sensitivity import measure_sensitivities as measure_sensitivities
    from streamsparse.sequential import refit as refit
    from streamsparse.solve import Constraints as Constraints
    from streamsparse.solve import SolveSettings as SolveSettings
    from streamsparse.solve import hyperparameter_search as hyperparameter_search
    from streamsparse.solve import network_front as network_front
    from streamsparse.solve import solve as solve
    from streamsparse.solve import trade_off as trade_off
    from streamsparse.write.checkpoint import load as load
    from streamsparse.write.stage import write as write

_HOMES = {
    "AccumulateSettings": "accumulate",
    "CaptureSettings": "capture",
    "Client": "client",
    "Constraints": "solve",
    "Evaluation": "evaluation",
    "Reported": "reporting",
    "Result": "run",
    "SolveSettings": "solve",
    "StreamsparseError": "errors",
    "Subject": "capture",
    "accumulate": "accumulate",
    "capture": "capture",
    "capture_until_converged": "adaptive",
    "evaluate": "evaluation",
    "find_groups": "network",
    "hyperparameter_search": "solve",
    "improve": "improvement",
    "load": "write.checkpoint",
    "measure_sensitivities": "sensitivity",
    "merge": "merging",
    "network_front": "solve",
    "prune": "run",
    "refit": "sequential",
    "report": "reporting",
    "solve": "solve",
    "trade_off": "solve",
    "write": "write.stage",
}

__all__ = sorted(_HOMES)


class _Package(ModuleType):
    """Public names on demand. Stage functions bear the names of the packages that hold them; here they win."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        """The import system sets every imported subpackage as an attribute: not over a public function."""
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})


sys.modules[__name__].__class__ = _Package
