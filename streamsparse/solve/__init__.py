"""Solve: statistics into fronts, a plan and exact weights. Never sees an activation."""

from streamsparse.solve.budget import Budget, allocate, parse_budget
from streamsparse.solve.fronts import GroupFront, SolveSettings, solve_group, solve_groups
from streamsparse.solve.plan import check_request, make_plan
from streamsparse.solve.refit import RefittedLayer, kept_inputs, refit_layer
from streamsparse.solve.stage import find_fronts, refit_layers, solve

__all__ = [
    "Budget",
    "GroupFront",
    "RefittedLayer",
    "SolveSettings",
    "allocate",
    "check_request",
    "find_fronts",
    "kept_inputs",
    "make_plan",
    "parse_budget",
    "refit_layer",
    "refit_layers",
    "solve",
    "solve_group",
    "solve_groups",
]
