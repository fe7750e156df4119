"""What Xen's commands to a unit cost: a meter charges virtual CPU 0 for what was submitted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from iommu_emu.driver import Driver
from iommu_emu.meter import Meter, Work

_WAITS = ("WaitDescriptor", "CompletionWait")
_IOTLB = ("IotlbInvalidation", "InvalidateIommuPages")
_OTHERS = {
    "ContextInvalidation": Work.INVALIDATE_CONTEXT,
    "InvalidateDevtabEntry": Work.INVALIDATE_CONTEXT,
    "DeviceTlbInvalidation": Work.INVALIDATE_DEVICE_TLB,
    "InvalidateIotlbPages": Work.INVALIDATE_DEVICE_TLB,
}

__all__ = ["charged"]


@contextmanager
def charged(meter: Meter, driver: Driver[Any], iotlb: Work) -> Iterator[None]:
    """Charge for the commands that are put on a unit's queue in the `with` block.

    Invalidation by registers costs nothing: no model has a price for it.

    Args:
        meter: what charges.
        driver: of the unit.
        iotlb: what an invalidation of the IOTLB is among them, INVALIDATE_PAGE or
            INVALIDATE_DOMAIN.
    """
    before = driver.submitted.copy()
    yield
    submitted = driver.submitted - before
    waits = sum(submitted[name] for name in _WAITS)
    with meter.lock(0, f"queue:unit {driver.unit.number}"):
        meter.spend(0, Work.SUBMIT, waits)
        for name, count in submitted.items():
            work = iotlb if name in _IOTLB else _OTHERS.get(name)
            if work is not None:
                meter.spend(0, work, count)
        meter.spend(0, Work.WAIT, waits)
