"""Evaluate: the original and the pruned model side by side."""

from streamsparse.evaluate.comparison import Comparison, compare
from streamsparse.evaluate.layers import measured_errors

__all__ = ["Comparison", "compare", "measured_errors"]
