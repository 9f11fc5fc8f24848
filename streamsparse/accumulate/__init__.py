"""Accumulate: stored activations into sufficient statistics, once, out of core, on any executor."""

from streamsparse.accumulate.following import follow
from streamsparse.accumulate.plan import AccumulatePlan, AccumulateSettings, plan_accumulation
from streamsparse.accumulate.report import AccumulateReport
from streamsparse.accumulate.stage import accumulate, accumulate_stream, dry_run

__all__ = [
    "AccumulatePlan",
    "AccumulateReport",
    "AccumulateSettings",
    "accumulate",
    "accumulate_stream",
    "dry_run",
    "follow",
    "plan_accumulation",
]
