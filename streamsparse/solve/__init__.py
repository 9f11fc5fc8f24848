"""Solve: statistics into fronts, a plan and weights. Never sees an activation."""

from streamsparse.solve.budget import Budget, allocate, parse_budget
from streamsparse.solve.constraints import Constraints
from streamsparse.solve.fronts import GroupFront, SolveSettings, solve_group, solve_groups
from streamsparse.solve.hyperparameters import Search, Trial, hyperparameter_search, search_group
from streamsparse.solve.originals import Originals
from streamsparse.solve.plan import check_request, make_plan
from streamsparse.solve.refit import RefittedLayer, RidgeSearch, kept_inputs, refit_layer
from streamsparse.solve.stage import find_fronts, refit_layers, solve
from streamsparse.solve.trade_offs import NetworkPoint, network_front, trade_off

__all__ = [
    "Budget",
    "Constraints",
    "GroupFront",
    "NetworkPoint",
    "Originals",
    "RefittedLayer",
    "RidgeSearch",
    "Search",
    "SolveSettings",
    "Trial",
    "allocate",
    "check_request",
    "find_fronts",
    "hyperparameter_search",
    "kept_inputs",
    "make_plan",
    "network_front",
    "parse_budget",
    "refit_layer",
    "refit_layers",
    "search_group",
    "solve",
    "solve_group",
    "solve_groups",
    "trade_off",
]
