"""Faults as Xen's log tells them."""

from __future__ import annotations

from typing import Any

from iommu_emu.amdvi.events import FLAGS, EventRecord
from iommu_emu.amdvi.structures import event_structure
from iommu_emu.core import Access
from iommu_emu.driver import Driver, Fault
from iommu_emu.pci.address import format_requester
from iommu_emu.vtd.faults import FaultRecord

_PAGE_FAULT = "IO_PAGE_FAULT"
_NAMES = {  # Xen's, where they are not the specification's
    "DEV_TAB_HARDWARE_ERROR": "DEV_TABLE_HW_ERROR",
    "PAGE_TAB_HARDWARE_ERROR": "PAGE_TABLE_HW_ERROR",
    "COMMAND_HARDWARE_ERROR": "COMMAND_HW_ERROR",
    "INVALID_DEVICE_REQUEST": "INVALID_DEV_REQUEST",
}
_INTERRUPT_FAULTS = range(0x20, 0x27)
_DMA_FAULTS = range(0x0E)

__all__ = ["fault_lines"]


def fault_lines(driver: Driver[Any], fault: Fault) -> list[str]:
    """Return the lines of Xen's log about a fault.

    The words for a VT-d fault reason are this project's own.

    Args:
        driver: of the unit that recorded it.
        fault: the record.
    """
    segment = driver.unit.segment
    if isinstance(fault, EventRecord):
        return [_amdvi(fault, segment)]
    assert isinstance(fault, FaultRecord)
    return _vtd(fault, segment, driver.machine.units.index(driver.unit))


def _vtd(fault: FaultRecord, segment: int, unit: int) -> list[str]:
    device = f"{segment:04x}:{format_requester(fault.requester)}"
    if fault.code in _DMA_FAULTS:
        kind = "DMAR"
        reading = fault.access in (Access.READ, Access.ATOMIC)  # the type bit T1
        action = "DMA Read" if reading else "DMA Write"
        first = f"DMAR:[{action}] Request device [{device}] fault addr {fault.address:x}"
    elif fault.code in _INTERRUPT_FAULTS:
        kind = "INTR-REMAP"
        first = f"INTR-REMAP: Request device [{device}] fault index {fault.address >> 48:x}"
    else:
        kind = "UNKNOWN"
        first = f"UNKNOWN: Request device [{device}] fault addr {fault.address:x}"
    reason = f"{kind}: reason {fault.code:02x} - {fault.condition} on iommu:{unit}"
    return [f"[VT-D]{first}", f"[VT-D]{reason}"]


def _amdvi(fault: EventRecord, segment: int) -> str:
    if fault.name != _PAGE_FAULT:
        structure = event_structure(bytes(7) + bytes([fault.code << 4]) + bytes(8))
        assert structure is not None
        raw = structure.build(**fault.fields)
        words = " ".join(raw[at : at + 4][::-1].hex() for at in range(0, len(raw), 4))
        return f"{_NAMES.get(fault.name, fault.name)} {words}"
    device = f"{segment:04x}:{format_requester(fault.requester)}"
    bits = sum(1 << FLAGS.index(flag) for flag in fault.flags)
    names = "".join(f" {flag.upper()}" for flag in reversed(FLAGS) if flag in fault.flags)
    domain = fault.fields.get("domain_id", 0)
    return (
        f"AMD-Vi: {fault.name}: {device} d{domain} addr {fault.address:016x} flags {bits:#x}{names}"
    )
