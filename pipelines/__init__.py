"""Runnable recipes: training, the demonstration, the paper's tables. streamsparse never imports them."""

from __future__ import annotations

import os

# Read by OpenMP when torch is loaded. Threads that spin while they wait make a busy machine ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
