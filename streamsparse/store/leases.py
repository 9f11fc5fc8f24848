"""Locks in a bucket, where no operating system drops them when their holder dies.

Each holder keeps an object of its own under locks/NAME/ and renews it while it lives:

    ask      write the own object under a new name, then list: no rival there -> the lock is held
    rival    delete the own object, wait until no rival is listed, ask again; give up at a rival that is seen to
             live; of several that ask at once, the one whose name comes first stays until the others have gone
    renew    every 5 s; the holder itself stops writing 25 s after the last renewal that succeeded
    expiry   30 s without renewal, by the server's clock: the object counts no more, and is deleted

Of two that ask at the same time at least one sees the other, because a listing shows every object that was written
before it (S3 has promised so since 2020, and its imitations do), so two never hold. Nothing is asked of conditional
writes, which several servers accept and ignore. The time of the own object, fresh in the same listing, is the
server's now. A rival on this machine is looked up among its processes, so nobody waits for the expiry there.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import obstore

from streamsparse.errors import RunLockedError, StorageError
from streamsparse.store import layout, processes
from streamsparse.store.bucket import Bucket, ListedObject
from streamsparse.store.failures import storage_errors


@dataclass(frozen=True)
class Timing:
    """Of a lease, in seconds. `lapse_seconds` must be the shorter by more than a listing's times are coarse.

    Attributes:
        renewal_seconds: from one renewal to the next.
        lapse_seconds: after the last renewal, from when the holder must not write.
        expiry_seconds: after the last renewal, from when others take over.
        retry_seconds: mean pause before asking again.
    """

    renewal_seconds: float = 5.0
    lapse_seconds: float = 25.0
    expiry_seconds: float = 30.0
    retry_seconds: float = 0.5


TIMING = Timing()
_LOOKS = 5
"""At a listing, by the first of those that ask at once, until the others have gone."""
_OURS: set[str] = set()
"""Keys of this process's leases: one of its name that is not among them was left behind at a dead server."""


@contextmanager
def leased(
    bucket: Bucket, name: str, *, shared: bool = False, wait: bool = False, timing: Timing | None = None
) -> Iterator[None]:
    """Hold the lock `name` of a run in a bucket; a lease that is lost meanwhile forbids writes through `bucket`.

    Args:
        bucket: the run's store.
        name: of the lock.
        shared: several holders at once, but no exclusive one.
        wait: for a living holder, instead of giving up.
        timing: for tests.

    Raises:
        RunLockedError: a living holder is in the way; says where it runs.
        StorageError: the bucket cannot be reached, or the lease was lost meanwhile.
    """
    lease = Lease(bucket, name, shared=shared, timing=timing or TIMING)
    lease.acquire(wait=wait)
    bucket.guards.append(lease.require)
    try:
        yield
        lease.confirm()
    finally:
        bucket.guards.remove(lease.require)
        lease.release()


class Lease:
    """One holder's claim on one lock."""

    def __init__(self, bucket: Bucket, name: str, *, shared: bool, timing: Timing) -> None:
        self._bucket = bucket
        self._name = name
        self._prefix = layout.lease_prefix(name)
        self._shared = shared
        self._timing = timing
        self._key = ""
        self._holders: dict[ListedObject, dict[str, Any]] = {}  # what was read of rivals
        self._renewals = 0
        self._renewed = 0.0  # start of the last renewal that succeeded, by `_clock`
        self._modified = 0.0  # its time by the server's clock
        self._lost = ""
        self._released = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, name=f"lease {name}", daemon=True)

    def acquire(self, *, wait: bool) -> None:
        """Ask until the lock is held. Raises RunLockedError at a living holder unless `wait`."""
        with storage_errors(self._prefix):
            while rivals := self._ask():
                self._await_clear(rivals, wait=wait)
        self._heartbeat.start()

    def require(self) -> None:
        """Raise StorageError if others may hold the lock by now. Sends nothing."""
        if self._has_lapsed():
            raise StorageError(
                "This process has lost its lock of the run, so it must not write to it any more.",
                expected=f"a renewal of the lock within {self._timing.lapse_seconds:.0f} s",
                got=self._lost,
                where=f"{self._bucket.url}/{self._prefix}",
                remedy="check the connection to the server, then run the same command again: it resumes",
            )

    def _has_lapsed(self) -> bool:
        """Whether the lease is lost; by this machine's clock it is as soon as it was not renewed for too long."""
        if not self._lost and _clock() - self._renewed > self._timing.lapse_seconds:
            self._lost = f"no renewal for {_clock() - self._renewed:.0f} s"
        return bool(self._lost)

    def confirm(self) -> None:
        """Raise StorageError if the lease was lost, even if this process slept through it."""
        self._stop()
        with suppress(Exception):  # an unreachable server: the clock decides
            self._renew()
        self.require()

    def release(self) -> None:
        """Let others in; if the server cannot be reached they wait for the expiry."""
        self._stop()
        _OURS.discard(self._key)
        with suppress(Exception):
            obstore.delete(self._bucket.impatient, self._key)

    def _ask(self) -> list[ListedObject]:
        """Claim the lock under a new name; the rivals that are in the way, from whom the claim is withdrawn."""
        self._key = layout.lease_key(self._name, uuid.uuid4().hex, shared=self._shared)
        self._renewed = _clock()
        _OURS.add(self._key)
        try:
            obstore.put(self._bucket.store, self._key, self._document(held=False))
            for _ in range(_LOOKS):
                rivals = self._rivals()
                if not rivals or min(rival.key for rival in rivals) < self._key:
                    break
                self._pause()
        except BaseException:
            self.release()
            raise
        if rivals:
            obstore.delete(self._bucket.store, self._key)
            _OURS.discard(self._key)
        return rivals

    def _rivals(self) -> list[ListedObject]:
        """The rivals in a listing; deletes those that have expired."""
        found = {item.key: item for item in self._bucket.listing(self._prefix)}
        if self._key not in found:
            raise self._unseen()
        now = found[self._key].modified
        self._modified = now.timestamp()
        rivals = self._in_the_way(list(found.values()))
        expired = [item for item in rivals if (now - item.modified).total_seconds() >= self._timing.expiry_seconds]
        self._delete(expired)
        return [item for item in rivals if item not in expired]

    def _in_the_way(self, items: list[ListedObject]) -> list[ListedObject]:
        others = [item for item in items if item.key != self._key]
        return [item for item in others if not (self._shared and layout.is_shared_lease(item.key))]

    def _await_clear(self, rivals: list[ListedObject], *, wait: bool) -> None:
        """Look now and then, without asking, until nobody is there, or somebody who may have expired.

        Raises:
            RunLockedError: a rival lives, and the caller does not `wait`.
        """
        since = {rival: _clock() for rival in rivals}
        while since and _clock() - min(since.values()) < self._timing.expiry_seconds:
            self._pause()
            present = self._in_the_way(self._bucket.listing(self._prefix))
            known = [item for item in present if item in since]  # who only asks is gone by now
            dead = [item for item in known if self._is_dead(item)]
            self._delete(dead)
            keys = {item.key for item in since}
            renewed = [item for item in present if item not in since and item.key in keys]
            living = renewed + [item for item in known if item not in dead and self._is_held_here(item)]
            if living and not wait:
                raise self._locked(living[0])
            since = {item: since.get(item, _clock()) for item in present if item not in dead}

    def _delete(self, items: list[ListedObject]) -> None:
        for item in items:
            obstore.delete(self._bucket.store, item.key)

    def _is_held_here(self, item: ListedObject) -> bool:
        """Whether a living process of this machine holds it, and does not just ask."""
        holder = self._holder(item)
        return bool(holder.get("held")) and processes.is_alive(holder) is True

    def _is_dead(self, item: ListedObject) -> bool:
        """Whether its process was one of this machine's and ended, or is this one and gave it up."""
        holder = self._holder(item)
        left_behind = processes.is_own(holder) and item.key not in _OURS
        return left_behind or processes.is_alive(holder) is False

    def _pause(self) -> None:
        time.sleep(self._timing.retry_seconds * random.uniform(0.5, 1.5))

    def _holder(self, item: ListedObject) -> dict[str, Any]:
        """What an object says of its process; {} if it is gone meanwhile or says nothing."""
        if item not in self._holders:
            try:
                found = json.loads(bytes(obstore.get(self._bucket.store, item.key).bytes()))
            except (FileNotFoundError, ValueError, obstore.exceptions.BaseError):  # deleted while it was read
                found = None
            self._holders[item] = found if isinstance(found, dict) else {}
        return self._holders[item]

    def _locked(self, rival: ListedObject) -> RunLockedError:
        holder = self._holder(rival)
        return RunLockedError(
            "Another process is using this run.",
            expected="no other writer",
            got=f"locked by process {holder.get('process', 'unknown')} on {holder.get('host', 'an unknown host')}",
            where=f"{self._bucket.url}/{rival.key}",
            remedy="wait for it to finish, stop it, or choose another RUN",
        )

    def _unseen(self) -> StorageError:
        return StorageError(
            "A lock that was just written is not in the store's listing.",
            expected="a store whose listings show what was written before them",
            got="a listing without it: a slow server, or this process slept meanwhile",
            where=f"{self._bucket.url}/{self._key}",
            remedy="run the same command again: it resumes",
        )

    def _document(self, *, held: bool) -> bytes:
        return json.dumps({**processes.identity(), "held": held, "renewals": self._renewals}).encode()

    def _beat(self) -> None:
        """Renew until released or lost: at once, which says that the lock is held, and then regularly."""
        while not self._lost:
            with suppress(Exception):  # tried again soon; `require` watches the time
                self._renew()
            if self._released.wait(self._timing.renewal_seconds):
                return

    def _renew(self) -> None:
        """Unless it is lost: what lapsed is not taken up again, though nobody else may have asked meanwhile."""
        if self._has_lapsed():
            return
        started = _clock()
        self._renewals += 1
        obstore.put(self._bucket.impatient, self._key, self._document(held=True))
        try:
            modified = obstore.head(self._bucket.impatient, self._key)["last_modified"].timestamp()
        except FileNotFoundError:
            self._lost = "the lock was taken away"
            return
        if modified - self._modified > self._timing.lapse_seconds:
            self._lost = f"no renewal for {modified - self._modified:.0f} s by the server's clock"
            return
        self._renewed, self._modified = started, modified

    def _stop(self) -> None:
        self._released.set()
        if self._heartbeat.is_alive():
            self._heartbeat.join()


def _clock() -> float:
    """Seconds, counting those of a machine that sleeps, where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
