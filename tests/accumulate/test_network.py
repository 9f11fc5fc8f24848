"""The network between two hosts drops in the middle of an accumulation, for longer than the cluster waits.

Two network namespaces stand for the hosts, a veth pair for the cable between them; both see the run, as hosts see
a shared file system. One has the scheduler, the client and a worker, the other a worker that is lost, and that goes
on for a while with what it was doing, beside the one that has got its tasks. No packet leaves the namespaces.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.accumulate.test_kills import (
    DOCUMENTED,
    begin,
    captured,
    finish,
    start_and_wait,
    undisturbed,
)
from tests.cluster_processes import Place, cluster_processes
from tests.small import largest_difference, statistics_arrays

__all__ = ("captured", "undisturbed")  # fixtures

DROP_SECONDS = 8.0  # a worker is given up after five, the least that Dask waits, and one or two more
CONFIG = {
    "distributed.scheduler.worker-ttl": "2s",
    "distributed.comm.timeouts.tcp": "11s",  # the least that it accepts
    "distributed.comm.timeouts.connect": "5s",
}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Hosts:
    """Two places and the cable between them."""

    def __init__(self) -> None:
        unique = f"{os.getpid() % 10**6}{random.randrange(1000):03d}"
        self.places = [Place(f"192.0.2.{number}", f"ss{unique}-{number}") for number in (1, 2)]
        self._ends = [f"s{unique}-{number}" for number in (1, 2)]

    def connect(self) -> None:
        for place in self.places:
            ip("netns", "add", str(place.namespace))
        ip("link", "add", self._ends[0], "type", "veth", "peer", "name", self._ends[1])
        for place, end in zip(self.places, self._ends, strict=True):
            ip("link", "set", end, "netns", str(place.namespace))
            ip("-n", str(place.namespace), "address", "add", f"{place.host}/24", "dev", end)
            ip("-n", str(place.namespace), "link", "set", "lo", "up")
            ip("-n", str(place.namespace), "link", "set", end, "up")

    def cable(self, state: str) -> None:
        """ "up" or "down"."""
        ip("-n", str(self.places[0].namespace), "link", "set", self._ends[0], state)

    def remove(self) -> None:
        """The cable goes with the namespaces that it is in."""
        for place in self.places:
            subprocess.run(["ip", "netns", "delete", str(place.namespace)], check=False, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("network namespaces are made with `ip` (iproute2), which is not installed")
    found = Hosts()
    try:
        found.connect()
    except subprocess.CalledProcessError as error:
        found.remove()
        pytest.skip(f"this machine does not let the test make network namespaces: {error.stderr.decode().strip()}")
    yield found
    found.remove()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_network_drops(
    hosts: Hosts, captured: Path, undisturbed: dict[str, np.ndarray], tmp_path: Path, seed: int
) -> None:
    chosen = random.Random(seed)
    run = begin(captured, tmp_path / "run")
    here, there = hosts.places
    with cluster_processes(tmp_path, workers=1, place=here, config=CONFIG, pause_seconds=0.1) as cluster:
        lost = cluster.start_worker(there)
        client = start_and_wait(cluster, run, chosen.uniform(0, 1))
        assert client.is_alive()
        hosts.cable("down")
        time.sleep(DROP_SECONDS)
        hosts.cable("up")
        cluster.start_worker(there)
        finish(cluster, client)
        lost.join(60)
        assert not lost.is_alive(), "a worker that lost its scheduler ends"
    assert largest_difference(statistics_arrays(run), undisturbed) <= DOCUMENTED
