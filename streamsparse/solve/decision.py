"""Everything that plans are made from, for one budget: made once, asked as often as wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamsparse.kernels.costs import CostModel
from streamsparse.kernels.latencies import LatencyModel
from streamsparse.solve.constraints import Constraints
from streamsparse.solve.fronts import GroupFront
from streamsparse.solve.plan import make_plan
from streamsparse.types import PrunePlan


@dataclass(frozen=True, eq=False)
class Decision:
    """What `make_plan` is given.

    Attributes:
        fronts: by group, of all that do not stay whole.
        costs: of every architecture.
        constraints: on counts, positions and layers.
        losses: predicted, by group and count, (positions + 1,).
        loss_kind: what they are, see `PrunePlan`.
        budget: as given.
        latencies: of the budget's device, or None.
    """

    fronts: Mapping[str, GroupFront]
    costs: CostModel
    constraints: Constraints
    losses: Mapping[str, np.ndarray]
    loss_kind: str
    budget: str | None
    latencies: LatencyModel | None

    @property
    def allowed(self) -> dict[str, NDArray[np.int64]]:
        """Counts that the constraints allow, ascending, by group."""
        return {name: self.constraints.allowed(name, front.front.positions) for name, front in self.fronts.items()}

    def plan(
        self,
        channels: Mapping[str, int] | None = None,
        *,
        losses: Mapping[str, np.ndarray] | None = None,
        within: Mapping[str, tuple[int, int]] | None = None,
    ) -> PrunePlan:
        """The plan of least loss.

        Args:
            channels: counts by hand; those of groups that stay whole are passed over.
            losses: in place of the predicted ones.
            within: least and greatest count of every group.
        """
        largest = {} if self.budget else {name: int(own[-1]) for name, own in self.allowed.items()}
        free = largest | {name: count for name, count in (channels or {}).items() if name in self.fronts}
        return make_plan(
            self.fronts, self.costs, budget=self.budget, channels=free,
            constraints=self.constraints.of(self.fronts), losses=self.losses if losses is None else losses,
            loss_kind=self.loss_kind, latencies=self.latencies, within=within,
        )  # fmt: skip
