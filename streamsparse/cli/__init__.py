"""The command line: argv to the stages."""

from __future__ import annotations

import os

# Read by OpenMP when torch is loaded. Threads that spin while they wait make a busy machine ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from streamsparse.cli.app import main

__all__ = ["main"]
