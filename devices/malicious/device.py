"""The malicious device that the others are built on: any DMA to any address, at any time."""

from __future__ import annotations

from collections.abc import Callable

from iommu_emu.core import (
    Access,
    AddressType,
    AtomicKind,
    BytesLike,
    Completion,
    CompletionDetails,
    RequestFlag,
    Status,
)
from iommu_emu.devices.base import Device

__all__ = ["MaliciousDevice"]


class MaliciousDevice(Device):
    """A function that obeys nobody.

    It looks like what it is told to look like, ignores its own bus-master bit, sends requests
    with any requester ID, PASID and address type, and can wait before it strikes. Bridges above
    it that do not forward still stop it.

    Every attack returns a completion: at once, or one that is pending until the delay is over and
    the transfer has completed. `log` keeps all of them.

    Args:
        name: for people.
        looks_like: vendor and device ID that it shows.

    Attributes:
        log: the completion of every attack, in the order in which they were told.

    Raises:
        ValueError: if an ID does not fit in 16 bits.
    """

    obeys_bus_master = False
    msi_vectors = 1

    def __init__(
        self, name: str = "malicious device", looks_like: tuple[int, int] = (0x1234, 0x0666)
    ) -> None:
        super().__init__(name)
        for value in looks_like:
            if not 0 <= value <= 0xFFFF:
                raise ValueError(f"looks_like must be two numbers in 0..0xffff, not {looks_like}")
        self.config.set(0x00, 4, looks_like[1] << 16 | looks_like[0])
        self.log: list[Completion] = []

    def read(
        self,
        address: int,
        length: int,
        *,
        delay: int = 0,
        requester: int | None = None,
        pasid: int | None = None,
        at: AddressType = AddressType.UNTRANSLATED,
        flags: RequestFlag = RequestFlag.NONE,
    ) -> Completion:
        """Read memory.

        Args:
            address: IOVA, or whatever `at` makes of it.
            length: bytes, 0..16 MiB.
            delay: ns to wait before it is sent.
            requester: requester ID to spoof; None: its own.
            pasid: 20 bits; None: no PASID prefix.
            at: address type.
            flags: further attributes.
        """

        def strike(done: Callable[[Completion], None]) -> Completion:
            return self.dma.transfer(
                Access.READ, address, length, pasid=pasid, at=at, flags=flags, on_done=done
            )

        return self._attack(strike, address, delay, requester)

    def write(
        self,
        address: int,
        data: BytesLike,
        *,
        delay: int = 0,
        requester: int | None = None,
        pasid: int | None = None,
        at: AddressType = AddressType.UNTRANSLATED,
        flags: RequestFlag = RequestFlag.NONE,
    ) -> Completion:
        """Write memory; a DWORD to FEEx_xxxxh is an interrupt. Arguments as for `read`."""
        payload = bytes(data)

        def strike(done: Callable[[Completion], None]) -> Completion:
            return self.dma.transfer(
                Access.WRITE, address, payload, pasid=pasid, at=at, flags=flags, on_done=done
            )

        return self._attack(strike, address, delay, requester)

    def atomic(
        self,
        kind: AtomicKind,
        address: int,
        operand: int,
        compare: int | None = None,
        *,
        delay: int = 0,
        requester: int | None = None,
        size: int = 8,
    ) -> Completion:
        """Do an AtomicOp; see `Port.atomic`. Further arguments as for `read`."""

        def strike(done: Callable[[Completion], None]) -> Completion:
            return self.dma.atomic(kind, address, operand, compare, size=size, on_done=done)

        return self._attack(strike, address, delay, requester)

    def _attack(
        self,
        strike: Callable[[Callable[[Completion], None]], Completion],
        address: int,
        delay: int,
        requester: int | None,
    ) -> Completion:
        """Strike now or later; the completion that is returned is the one that gets filled in."""
        waiting = CompletionDetails(Status.PENDING, address, 0, self.clock.now)
        completion = Completion(b"", waiting)

        def finish(result: Completion) -> None:
            completion.data, completion.details = result.data, result.details
            self.answered(completion)

        def act() -> None:
            own = self.dma.requester
            if requester is not None:
                self.dma.set_requester(requester)
            try:
                strike(finish)
            finally:
                if requester is not None:
                    self.dma.set_requester(own)

        if delay:
            self.clock.call_later(delay, act)
        else:
            act()
        self.log.append(completion)
        return completion

    def answered(self, completion: Completion) -> None:
        """Called with every completion once it is there; models override it."""

    def on_removed(self) -> None:
        """Drop the completions of what is in flight."""
        super().on_removed()
        for completion in self.log:
            if completion.details is not None and completion.pending:
                address = completion.details.address
                completion.details = CompletionDetails(Status.REMOVED, address, 0, self.clock.now)
