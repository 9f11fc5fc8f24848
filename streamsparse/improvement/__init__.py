"""Improvement: move channels between groups while the measured loss of the whole cut network comes down."""

from streamsparse.improvement.stage import Improved, improve

__all__ = ["Improved", "improve"]
