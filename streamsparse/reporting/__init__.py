"""Reports: the facts of a run, and the files that show them."""

from streamsparse.reporting.gathering import gather
from streamsparse.reporting.stage import Reported, report

__all__ = ["Reported", "gather", "report"]
