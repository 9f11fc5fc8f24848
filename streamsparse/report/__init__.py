"""What was done, for people: per layer, in numbers."""

from streamsparse.report.layers import layer_reports

__all__ = ["layer_reports"]
