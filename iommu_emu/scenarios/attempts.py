"""What a device tries, and what it gets: secrets, accesses, and the window they get through in."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from iommu_emu.clock import MICROSECOND
from iommu_emu.core import Access, BytesLike, Completion
from iommu_emu.machine import Machine
from iommu_emu.pci.function import Function
from iommu_emu.scenarios.result import FOREVER, Outcome
from iommu_emu.timeline import EventKind, Timeline

PROBE = 100 * MICROSECOND  # between two accesses of a device that keeps trying
_NO_00_OR_FF = bytes([0x01, *range(0x01, 0xFF), 0xFE])
_RUN = 4  # equal bytes in a row that are no accident

__all__ = ["PROBE", "Attempt", "Attempts"]


@dataclass(frozen=True)
class Attempt:
    """What came of an access that a device tried, once or again and again.

    Attributes:
        completion: of the last time.
        tried: how often.
        landed: how often it got through.
        data: what the last read that got through brought.
    """

    completion: Completion
    tried: int
    landed: int
    data: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether it got through at least once."""
        return self.landed > 0


class Attempts:
    """Lets devices try, and keeps count.

    Args:
        machine: where.
        seed: of everything random.

    Attributes:
        machine: as given.
        clock: the machine's.
        timeline: what happened.
        random: everything random comes from here.
    """

    def __init__(self, machine: Machine, seed: int | str) -> None:
        self.machine = machine
        self.clock = machine.clock
        self.timeline = Timeline(self.clock)
        self.random = random.Random(seed)
        self._revoked: int | None = None
        self._landed: int | None = None  # time of the last access that got through after that
        self._dmas = 0

    def note(self, text: str, *, lane: str = "CPU 0") -> None:
        """Put a note on the timeline."""
        self.timeline.add(EventKind.NOTE, lane, text)

    def secret(self, size: int) -> bytes:
        """Return random bytes that nobody else has; none of them is 00h or FFh."""
        return self.random.randbytes(size).translate(_NO_00_OR_FF)

    def plant(self, address: int, size: int) -> bytes:
        """Write a new secret to physical memory and return it."""
        secret = self.secret(size)
        self.machine.memory.write(address, secret)
        return secret

    @staticmethod
    def matching(got: BytesLike, secret: bytes) -> int:
        """Count the bytes of a secret, each at its place, in what a device got.

        Fewer than four in a row are an accident, unless that is all there is.
        """
        equal = [a == b for a, b in zip(bytes(got), secret, strict=False)]
        runs = [len(list(group)) for same, group in groupby(equal) if same]
        return sum(run for run in runs if run >= min(_RUN, len(equal)))

    def changed(self, address: int, expected: bytes) -> int:
        """Count the bytes of physical memory that are no longer what they were."""
        now = self.machine.memory.read(address, len(expected))
        return sum(a != b for a, b in zip(now, expected, strict=True))

    def revoke(self, what: str) -> None:
        """Let the window begin: from now on the device should not get there.

        Args:
            what: what was taken from it, for the timeline.
        """
        self._revoked = self.clock.now
        self._landed = None
        self._dmas = 0
        self.note(f"no longer the device's: {what}")

    def attempt(
        self,
        device: Any,
        access: Access,
        address: int,
        payload: BytesLike | int,
        *,
        until: int | None = None,
        every: int = PROBE,
        **how: Any,
    ) -> Attempt:
        """Let a device try an access, and wait for what comes of it.

        What gets through after `revoke` counts for the window.

        Args:
            device: a malicious device, or whatever has its `read` and `write`; of any other
                device the DMA port is used.
            access: READ or WRITE.
            address: IOVA, or whatever `at` among `how` makes of it.
            payload: bytes to write, or the number of bytes to read.
            until: virtual time, ns; it is tried again and again until it fails or this comes;
                None: it is tried once.
            every: ns between two tries.
            how: further arguments of the device's `read` or `write`.

        Raises:
            ValueError: if READ has no number of bytes, or WRITE no bytes, or `every` is below 1.
        """
        if isinstance(payload, int) is not (access is Access.READ):
            raise ValueError("payload must be a number of bytes to read, or the bytes to write")
        if every < 1:
            raise ValueError(f"every must be at least 1 ns, not {every}")
        tried = landed = 0
        data = b""
        while True:
            completion = self._strike(device, access, address, payload, how)
            tried += 1
            if not completion.ok:
                break
            landed += 1
            data = completion.data or data
            if until is None or self.clock.now + every > until:
                break
            self.clock.advance(every)
        return Attempt(completion, tried, landed, data)

    def read(self, device: Any, address: int, size: int, **how: Any) -> Attempt:
        """Let a device try to read; see `attempt`."""
        return self.attempt(device, Access.READ, address, size, **how)

    def write(self, device: Any, address: int, data: BytesLike, **how: Any) -> Attempt:
        """Let a device try to write; see `attempt`."""
        return self.attempt(device, Access.WRITE, address, data, **how)

    def _strike(
        self, device: Any, access: Access, address: int, payload: Any, how: dict[str, Any]
    ) -> Completion:
        agent = device if hasattr(device, "read") else device.dma
        strike: Callable[..., Completion]
        strike = agent.read if access is Access.READ else agent.write
        completion = strike(address, payload, **how)
        return self.follow(device, access, address, payload, [completion]).completion

    def observe(
        self,
        device: Function,
        access: Access,
        address: int,
        payload: BytesLike | int,
        completion: Completion,
    ) -> None:
        """Note what came of an access that a device made by itself, as `attempt` does.

        Args:
            device: whose it was.
            access: READ or WRITE.
            address: where it went.
            payload: bytes written, or the number of bytes read.
            completion: what came back.
        """
        size = payload if isinstance(payload, int) else len(bytes(payload))
        verb = "read" if access is Access.READ else "write"
        if completion.ok:
            kind, text = EventKind.DMA, f"{verb} got through"
            if self._revoked is not None:
                self._dmas += 1
                self._landed = self.clock.now
        else:
            cause = completion.cause
            why = cause.name if cause else completion.status.name.replace("_", " ").lower()
            kind, text = EventKind.FAULT, f"{verb} stopped: {why}"
        self.timeline.add(kind, device.name, text, address=address, size=size)

    def follow(
        self,
        device: Function,
        access: Access,
        address: int,
        payload: BytesLike | int,
        completions: Sequence[Completion],
    ) -> Attempt:
        """Wait for accesses that a device makes by itself, one after the other, and note them.

        Args:
            device: whose they are.
            access: READ or WRITE.
            address: where they go.
            payload: bytes written, or the number of bytes read.
            completions: of each, in the order in which they come.

        Raises:
            ValueError: if there is none.
        """
        if not completions:
            raise ValueError("completions must be of at least one access")
        landed, data = 0, b""
        for completion in completions:
            while completion.pending and self.clock.run_to_next_event():
                pass
            self.observe(device, access, address, payload, completion)
            landed += completion.ok
            data = completion.data or data
        return Attempt(completions[-1], len(completions), landed, data)

    @property
    def window(self) -> int:
        """Time from `revoke` to the last access that got through, ns, at least 1; 0: none did."""
        if self._revoked is None or self._landed is None:
            return 0
        return max(1, self._landed - self._revoked)

    def outcome(
        self,
        *,
        leaked: int = 0,
        corrupted: int = 0,
        hung: bool = False,
        forever: bool = False,
    ) -> Outcome:
        """Return an outcome with window and DMAs as they were counted.

        Args:
            leaked: bytes of others that the device got to know.
            corrupted: bytes of others that it changed.
            hung: whether the host stopped.
            forever: nothing ends the window.
        """
        return Outcome(
            leaked=leaked,
            corrupted=corrupted,
            window=FOREVER if forever else self.window,
            dmas=self._dmas,
            hung=hung,
        )
