"""How Linux's drivers print what a unit recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iommu_emu.amdvi.events import FLAGS, EventRecord
from iommu_emu.core import Access
from iommu_emu.driver import Driver
from iommu_emu.linux.iommu_group import device_name
from iommu_emu.pci.address import format_requester
from iommu_emu.vtd.faults import FaultRecord

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux

# What the lines of AMD-Vi's events have besides the address.
_WITH_PASID = ("ILLEGAL_DEV_TABLE_ENTRY", "PAGE_TAB_HARDWARE_ERROR", "INVALID_DEVICE_REQUEST")
_WITH_DEVICE = (*_WITH_PASID, "DEV_TAB_HARDWARE_ERROR", "IOTLB_INV_TIMEOUT")
_WITHOUT_FLAGS = ("ILLEGAL_COMMAND_ERROR", "IOTLB_INV_TIMEOUT")

__all__ = ["fault_lines"]


def fault_lines(linux: Linux, driver: Driver[Any]) -> list[str]:
    """Take a unit's records, and return the lines of the log that they make.

    Args:
        linux: the kernel.
        driver: one of its units' drivers.
    """
    lines = []
    for record in driver.faults():
        if isinstance(record, FaultRecord):
            lines.append(_vtd_line(record))
        elif isinstance(record, EventRecord):
            lines.append(_amdvi_line(linux, driver, record))
    return lines


def _vtd_line(record: FaultRecord) -> str:
    action = "DMA Write" if record.access is Access.WRITE else "DMA Read"
    pasid = "NO_PASID" if record.pasid is None else f"PASID {record.pasid:#x}"
    return (
        f"DMAR: [{action} {pasid}] Request device [{format_requester(record.requester)}] "
        f"fault addr {record.address:#x} [fault reason {record.code:#04x}] {record.condition}"
    )


def _amdvi_line(linux: Linux, driver: Driver[Any], record: EventRecord) -> str:
    """Return what the driver prints of an event; of page faults, the device's own line."""
    segment = driver.unit.segment
    function = linux.machine.fabric.find(segment, record.requester)
    device = f"device={segment:04x}:{format_requester(record.requester)} "
    bits = sum(1 << FLAGS.index(flag) for flag in record.flags) | record.fields.get("type", 0) << 9
    flags = f" flags={bits:#06x}"
    address = f"address={record.address:#x}"
    if record.name == "IO_PAGE_FAULT":
        where = f"domain={record.fields.get('domain_id', 0):#06x} "
        if function is not None:
            text = f"[{record.name} {where}{address}{flags}]"
            return f"{function.name} {device_name(function)}: AMD-Vi: Event logged {text}"
        return f"AMD-Vi: Event logged [{record.name} {device}{where}{address}{flags}]"
    if record.name not in _WITH_DEVICE:
        device = ""
    pasid = "pasid=0x00000 " if record.name in _WITH_PASID else ""
    flags = "" if record.name in _WITHOUT_FLAGS else flags
    text = f"[{record.name} {device}{pasid}{address}{flags}]"
    number = list(linux.drivers.values()).index(driver)
    return f"iommu ivhd{number}: AMD-Vi: Event logged {text}"
