"""What a report says, as data: gathered once from a run, then drawn, written as JSON and CSV, or printed.

Facts
├── summary                 costs before and after, accuracy, agreement
├── points                  the whole network's Pareto front, the chosen point
├── groups                  GroupFacts: channels kept, front by method, sensitivity
├── layers                  LayerFacts: costs, predicted and measured error, conditioning, sample
├── walks                   Walk: the paper's path of a group, its alternation's loss, w as it sparsifies
├── stages                  StageFacts: seconds and memory
└── provenance              what went in
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from streamsparse.errors import CorruptDataError
from streamsparse.types import Costs, LayerReport


@dataclass(frozen=True)
class NetworkPoint:
    """One network that a budget could choose.

    Attributes:
        costs: of the whole network.
        predicted_loss: as the allocation predicts it, in `Facts.loss_unit`.
    """

    costs: Costs
    predicted_loss: float


@dataclass(frozen=True)
class FrontPoint:
    """The best support of one count.

    Attributes:
        kept: channels that stay.
        training_error, held_out_error: relative errors of the group's consumers; None where it was not evaluated.
        method: that found the support: "entropic", "elimination", "exchange", ...
    """

    kept: int
    training_error: float
    held_out_error: float | None
    method: str


@dataclass(frozen=True)
class GroupFacts:
    """One channel group.

    Attributes:
        name: of the group; size: channels of the original; kept: positions that stay.
        consumers, producers: module paths.
        front: ascending in `kept`.
        predicted_loss: of the network with this group alone cut so far, or None.
        sensitivity: (channels kept, loss) where it was measured, ascending; () where it was not.
    """

    name: str
    size: int
    kept: tuple[int, ...]
    consumers: tuple[str, ...]
    producers: tuple[str, ...]
    front: tuple[FrontPoint, ...]
    predicted_loss: float | None
    sensitivity: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class LayerFacts:
    """One convolution or linear layer.

    Attributes:
        report: channels and costs before and after, and the predicted (held-out) error.
        measured_error: relative error of its output in the pruned network on the images of `evaluate`, or None.
        features: columns of its regression (channels times taps); patches: rows; images: that they come from.
        condition: of the Gram of its standardised inputs, largest over smallest eigenvalue above round-off; of a
            grouped convolution, of the worst group; None if not computed.
        rank: eigenvalues above round-off, over all groups; fewer than `features` where inputs depend on each other.
        excess: held-out over training error of its re-estimated weights, minus 1: near 0, the sample is large
            enough; None where nothing was re-estimated, or both are no more than round-off.
    """

    report: LayerReport
    measured_error: float | None
    features: int
    patches: int
    images: int
    condition: float | None
    rank: int | None
    excess: float | None


@dataclass(frozen=True)
class Step:
    """One point of the paper's path in (ε_L2, ε_H).

    Attributes:
        eps_l2, eps_h: the paper's.
        support: channels with w > 0.
        w: of every channel, sums to 1.
    """

    eps_l2: float
    eps_h: float
    support: int
    w: tuple[float, ...]


@dataclass(frozen=True)
class Walk:
    """The entropic path of one group, and one plain alternation from the uniform start.

    Attributes:
        group: its name.
        steps: in the order of the walk.
        losses: L(w, Λ) after every iteration of the plain alternation (monotone), at the ε below.
        eps_l2, eps_h: of that alternation.
        accelerated_losses: of our alternation at the same ε from the same start.
    """

    group: str
    steps: tuple[Step, ...]
    losses: tuple[float, ...]
    accelerated_losses: tuple[float, ...]
    eps_l2: float
    eps_h: float


@dataclass(frozen=True)
class StageFacts:
    """What a stage took when it last ran.

    Attributes:
        stage: "capture", "accumulate", "solve" (the fronts), "refit", ...
        seconds: wall time; peak_bytes: largest resident memory of its process, or None where nobody looked.
        finished: ISO 8601, UTC; "" where it was cut short; machine: processor, cores, threads in words.
        reused: what an earlier call had left of it, in words: seconds are then those of the rest.
    """

    stage: str
    seconds: float
    peak_bytes: int | None
    finished: str
    machine: str
    reused: tuple[str, ...] = ()


@dataclass(frozen=True)
class TimedBatch:
    """Seconds of a forward pass per image, at `images` images at once."""

    images: int
    original_seconds: float
    pruned_seconds: float


@dataclass(frozen=True)
class Measured:
    """Original and pruned network on the images of `evaluate`.

    Attributes:
        checkpoint: its name; images: how many; data: in words, "" where nobody noted it.
        original_accuracy, pruned_accuracy: fractions, or None without labels.
        agreement: fraction put into the same class; divergence: nats per image.
        original_seconds, pruned_seconds: of one forward pass per image at `batch_images` images, or None.
        batch_images: the smallest batch that was timed, or None; device: that it was timed on, with its threads.
        larger_batches: the others that were timed, ascending.
        costs: of this checkpoint: a run may hold several, and the pruned network's is one of them at most.
        finished: ISO 8601, UTC; "" where nobody noted it.
    """

    checkpoint: str
    images: int
    data: str
    original_accuracy: float | None
    pruned_accuracy: float | None
    agreement: float
    divergence: float
    original_seconds: float | None
    pruned_seconds: float | None
    batch_images: int | None = None
    device: str = ""
    larger_batches: tuple[TimedBatch, ...] = ()
    costs: Costs | None = None
    finished: str = ""


@dataclass(frozen=True)
class Facts:
    """Everything that a report shows of a run; what the run does not hold yet is empty or None.

    Attributes:
        title: of the model and data; run: its path, URL or name.
        original, pruned: costs; pruned is None before a solution.
        budget: as given; predicted_loss: of the pruned network; loss_unit: "nats per image", ...
        improved_loss: of the pruned network as `improve` measured it, its weights independent, or None.
        mode: "independent" or "sequential"; recalibrated: whether BatchNorm was.
        points: the network's front, ascending in parameters; chosen: index into it, or None. The chosen network is
            one of them, and may lie above the front: a budget of another kind, constraints, counts by hand.
        measured: of the pruned network's own checkpoint first, then newest first.
        provenance: (what, value) in reading order.
        notes: what a reader must know: stages that are missing, cut short, or not converged.
    """

    title: str
    run: str
    original: Costs
    pruned: Costs | None
    budget: str | None
    predicted_loss: float | None
    loss_unit: str
    mode: str | None
    recalibrated: bool
    points: tuple[NetworkPoint, ...]
    groups: tuple[GroupFacts, ...]
    layers: tuple[LayerFacts, ...]
    walks: tuple[Walk, ...]
    stages: tuple[StageFacts, ...]
    measured: tuple[Measured, ...]
    provenance: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    chosen: int | None = None
    improved_loss: float | None = None

    @property
    def own_measurement(self) -> Measured | None:
        """Of the pruned network's own checkpoint, not of one of another size that the run holds too."""
        return next((one for one in self.measured if one.costs is None or one.costs == self.pruned), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Facts:
        """The inverse of `to_json`, of what `json.loads` gives.

        Raises:
            CorruptDataError: a field is missing or of another type.
        """
        found: Facts = _built(cls, value, "facts")
        return found


def _built(kind: Any, value: Any, where: str) -> Any:
    """A value of an annotated type from plain JSON; `where` names it for errors."""
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        hints, names = get_type_hints(kind), {field.name for field in fields(kind)}
        if value.keys() != names:
            raise _misshapen(f"fields {', '.join(sorted(names))}", ", ".join(sorted(value)), where)
        return kind(**{name: _built(hints[name], value[name], f"{where}.{name}") for name in names})
    parts = get_args(kind)
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        if len(kinds) == len(value):
            return tuple(_built(*pair, f"{where}[{i}]") for i, pair in enumerate(zip(kinds, value, strict=True)))
    elif NoneType in parts:
        return None if value is None else _built(parts[0], value, where)
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    raise _misshapen(str(kind), repr(value)[:60], where)


def _misshapen(expected: str, got: str, where: str) -> CorruptDataError:
    return CorruptDataError(
        "These are not the facts of a report.", expected=expected, got=got, where=where,
        remedy="write them again with `streamsparse report --format json`",
    )  # fmt: skip
