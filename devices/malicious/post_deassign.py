"""post-deassign: goes on after it was taken away from whoever it belonged to."""

from __future__ import annotations

from typing import Any

from iommu_emu.clock import MICROSECOND
from iommu_emu.core import BytesLike, Completion
from iommu_emu.devices.malicious.device import MaliciousDevice

__all__ = ["DEVICE", "PostDeassign"]


class PostDeassign(MaliciousDevice):
    """Reads and writes on and on; assignment and deassignment are nothing to it."""

    def keep_reading(
        self,
        address: int,
        length: int,
        *,
        interval: int = 100 * MICROSECOND,
        times: int = 10,
        **how: Any,
    ) -> list[Completion]:
        """Read the same memory again and again.

        Args:
            address: IOVA.
            length: bytes.
            interval: ns before the first read, and between two.
            times: how often.
            how: further arguments of `read`.

        Returns:
            The completions; each is pending until its time.
        """
        delays = range(interval, interval * times + 1, interval)
        return [self.read(address, length, delay=delay, **how) for delay in delays]

    def keep_writing(
        self,
        address: int,
        data: BytesLike,
        *,
        interval: int = 100 * MICROSECOND,
        times: int = 10,
        **how: Any,
    ) -> list[Completion]:
        """Write the same memory again and again; arguments as for `keep_reading`."""
        delays = range(interval, interval * times + 1, interval)
        return [self.write(address, data, delay=delay, **how) for delay in delays]


DEVICE = PostDeassign
