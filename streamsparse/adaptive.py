"""How many calibration images are enough: a capture that stops when every layer's refit has converged.

    images   64      128      256      512 ...     looks, at twice as many images each time, up to a bound
    look     every layer that has not converged yet: its refit at a working support, cross-validated over the folds
    layer    converged at the second look in a row with held-out − training error ≤ TOL, held-out error within TOL
             of the look before; what it needed is the images of that look
    capture  ends at the look by which all layers have converged, and is then a capture of so many images

Errors are relative squared errors of the layer's output. For least squares on T patches and n columns the two
differ by some 2n/T of the noise, so the gap falls as 1/T and tells what more images could still give. The working
support is that of `solve.working`. The paper leaves the number of images open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from streamsparse.capture import CaptureSettings, Subject, calibration_images, capture
from streamsparse.convergence import Convergence, Judge, LayerConvergence, Request
from streamsparse.errors import RunMismatchError, UsageError
from streamsparse.events import Notice, OnEvent, ignore
from streamsparse.intake.captured import read_captured
from streamsparse.kernels.folds import FoldSums
from streamsparse.store import Run, layout

FIRST_LOOK_IMAGES = 64
DEFAULT_KEEP = 0.5


def look_schedule(bound: int, batch_images: int) -> list[int]:
    """Numbers of images at which the statistics are looked at: whole batches, doubling, and the bound."""
    look, found = -(-FIRST_LOOK_IMAGES // batch_images) * batch_images, []
    while look < bound:
        found.append(look)
        look *= 2
    return [*found, bound]


def capture_until_converged(
    model: nn.Module,
    data: object,
    run: Run | str | Path,
    *,
    tolerance: float,
    keep_fraction: float = DEFAULT_KEEP,
    images: int | None = None,
    seed: int = 0,
    settings: CaptureSettings | None = None,
    subject: Subject | None = None,
    overwrite: bool = False,
    on_event: OnEvent = ignore,
) -> Convergence:
    """Capture into statistics until every layer has converged, or all images are used.

    The run is then a complete capture of the images that were used: later stages take exactly these. A killed call,
    repeated, goes on from the last commit; one that had ended returns what it found.

    Args:
        model, data, run, seed, subject, overwrite: as in `capture`.
        tolerance: TOL, a relative squared error, above 0.
        keep_fraction: of every group's channels in the working support, above 0 and up to 1.
        images: the bound; None for all there are.
        settings: as in `capture`; the sink is "statistics", in one shard. Batches have at most 64 images.

    Raises:
        UsageError: a tolerance, fraction or setting that does not fit.
        RunMismatchError: the run ended with another tolerance, fraction or bound, or holds another capture.
        ModelError, DataError, RunError, ResourceError: see `capture`.
    """
    settings = settings or CaptureSettings(sink="statistics")
    check_request(tolerance, keep_fraction, settings)
    settings = replace(settings, batch_images=min(settings.batch_images, FIRST_LOOK_IMAGES))
    run = run if isinstance(run, Run) else Run.at(run)
    bound = len(calibration_images(data, images=images, seed=seed))
    request = Request(tolerance, keep_fraction, bound, seed, settings.folds)
    ended = None if overwrite or not run.exists else _ended(run, request)
    looks = _Looks(run, data, request, look_schedule(bound, settings.batch_images), on_event)
    capture(
        model, data, run, images=bound if ended is None else ended, seed=seed, settings=settings, subject=subject,
        overwrite=overwrite, looks=looks if ended is None else None, on_event=on_event,
    )  # fmt: skip
    return looks.judge.convergence(run.manifest()["data"]["images"])


def check_request(tolerance: float, keep_fraction: float, settings: CaptureSettings) -> None:
    """Refuse what cannot be asked.

    Raises:
        UsageError: a tolerance or fraction out of range, another sink, or shards.
    """
    if not 0 < tolerance < 1:
        raise UsageError(
            "A tolerance is a relative squared error.", expected="between 0 and 1, such as 0.005", got=tolerance,
            where="--until-converged",
        )  # fmt: skip
    if not 0 < keep_fraction <= 1:
        raise UsageError(
            "The working support keeps a fraction of every group.", expected="above 0 and up to 1",
            got=keep_fraction, where="--at",
        )  # fmt: skip
    if settings.sink != "statistics" or settings.shards > 1:
        raise UsageError(
            "Only a capture into statistics, in one shard, can tell when they have converged.",
            expected="--sink statistics, without --shard",
            got=f"--sink {settings.sink}, {settings.shards} shard(s)",
            where="--until-converged",
            remedy="find the number with --sink statistics first, then capture so many images as you like",
        )


def _ended(run: Run, request: Request) -> int | None:
    """Images of a capture that has ended by itself; None if none has.

    Raises:
        RunMismatchError: it was asked something else.
    """
    manifest = run.manifest()
    found = manifest.get("until_converged")
    if found is None:
        return None
    if found != asdict(request):
        raise RunMismatchError(
            "This run ended when it had converged, as it was asked then.",
            expected=found,
            got=asdict(request),
            where=run.url,
            remedy="repeat the first request, choose another RUN, or pass --overwrite to begin this one anew",
        )
    return int(manifest["data"]["images"])


class _Looks:
    """Judges the layers at every look, keeps what was found in the run, and ends the capture (mutable)."""

    def __init__(self, run: Run, data: object, request: Request, schedule: list[int], on_event: OnEvent) -> None:
        self._run, self._data, self._request, self._schedule = run, data, request, schedule
        self._on_event = on_event
        self._judge: Judge | None = None

    @property
    def judge(self) -> Judge:
        """With what earlier calls found; there must be a run."""
        if self._judge is None:
            earlier = self._run.documents.read_json(layout.convergence_key(layout.ORIGINAL_STREAM)) or {}
            same = earlier.get("request") == self._request.identity()
            self._judge = Judge(read_captured(self._run), self._request, earlier["looks"] if same else [])
        return self._judge

    def enough(self, images: int, statistics: Mapping[str, FoldSums]) -> bool:
        """At a look: judge the layers, say how it went."""
        if images not in self._schedule:
            return False
        judge = self.judge
        judge.look(images, statistics)
        document = {"request": self._request.identity(), "looks": judge.to_json()}
        self._run.documents.write_json(layout.convergence_key(layout.ORIGINAL_STREAM), document)
        self._on_event(Notice("capture", judge.summary(images)))
        return judge.converged(images)

    def end(self, images: int) -> None:
        """From now on the run is a capture of so many images."""
        sample = calibration_images(self._data, images=images, seed=self._request.seed)
        manifest = self._run.manifest()
        data = {**manifest["data"], "images": images, "digest": sample.digest()}
        self._run.documents.write_json(
            layout.MANIFEST, {**manifest, "data": data, "until_converged": asdict(self._request)}
        )


__all__ = ["Convergence", "LayerConvergence", "capture_until_converged", "check_request", "look_schedule"]
