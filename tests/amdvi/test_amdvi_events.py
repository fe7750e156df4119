"""What a decoded event says for people."""

import pytest

from iommu_emu.amdvi.events import EventRecord
from iommu_emu.amdvi.structures import CommandHardwareError, IoPageFault


@pytest.mark.parametrize(
    ("flags", "condition"),
    [
        ({}, "not mapped"),
        ({"pr": 1}, "page-table entry of an illegal level or size"),
        ({"pr": 1, "rz": 1}, "reserved bit set in a page-table entry"),
        ({"pr": 1, "pe": 1}, "no permission to read"),
        ({"pr": 1, "pe": 1, "rw": 1}, "no permission to write"),
        ({"i": 1}, "interrupt refused"),
        ({"i": 1, "pr": 1, "rz": 1}, "reserved field in an interrupt's entry"),
    ],
)
def test_event_page_fault_says_what_its_flags_tell(flags, condition):
    assert EventRecord.decode(IoPageFault.build(**flags)).condition == condition


def test_event_of_another_code_lists_its_causes():
    record = EventRecord.decode(CommandHardwareError.build())
    assert record.condition == "command cannot be read; COMPLETION_WAIT cannot store"
