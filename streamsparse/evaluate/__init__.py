"""Evaluate: the original and the pruned model side by side."""

from streamsparse.evaluate.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
