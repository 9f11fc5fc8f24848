"""What every test shares."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: see streamsparse.cli
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many test processes as cores: a pool of threads in each crawls

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.object_server"]

# A busy machine is no reason to fail. CI repeats the same examples; elsewhere every run draws new ones.
unhurried = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("everywhere", **unhurried, print_blob=True)
settings.register_profile("ci", settings.get_profile("everywhere"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "everywhere")
