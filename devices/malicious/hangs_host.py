"""hangs-host: a device on a host that does not survive a fault of it."""

from __future__ import annotations

from collections.abc import Callable

from iommu_emu.core import Completion, CompletionDetails, Status
from iommu_emu.devices.malicious.device import MaliciousDevice

__all__ = ["DEVICE", "HangsHost"]


class HangsHost(MaliciousDevice):
    """Honest, but a fault that says "not present" stops device and host for ever.

    Any fault does but a missing permission: an access that is refused by an entry that is present
    is survived. Nothing is sent once the host hangs.

    Args:
        name: for people.

    Attributes:
        host_hung: whether it has happened.
        hung_at: virtual time when it did, in ns; None: it has not.
    """

    def __init__(self, name: str = "fragile device") -> None:
        super().__init__(name)
        self.hung_at: int | None = None

    @property
    def host_hung(self) -> bool:
        """Whether the host has stopped."""
        return self.hung_at is not None

    def answered(self, completion: Completion) -> None:
        """Hang if the request met something that is not present."""
        cause = completion.cause
        if cause is not None and "permission" not in cause.condition and self.hung_at is None:
            self.hung_at = self.clock.now

    def _attack(
        self,
        strike: Callable[[Callable[[Completion], None]], Completion],
        address: int,
        delay: int,
        requester: int | None,
    ) -> Completion:
        def unless_hung(done: Callable[[Completion], None]) -> Completion:
            if not self.host_hung:
                return strike(done)
            nothing = CompletionDetails(Status.BUSY, address, 0, self.clock.now)
            completion = Completion(b"", nothing)
            done(completion)
            return completion

        return super()._attack(unless_hung, address, delay, requester)


DEVICE = HangsHost
