"""Device-TLBs under the oracle: what a device reaches through its own, with both vendors.

Every page but those of tables holds its own address, so what a device reads tells where it went.
"""

from __future__ import annotations

from typing import Any

from driver_machine import DEVICES, FRAMES, IOVAS, SIZES, DriverMachine
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from iommu_emu.core import AddressType, Completion, IotlbLookup, Outcome, Request, Status
from iommu_emu.geometry import CacheGeometry
from iommu_emu.reference import Answer

RAM = 16 << 20
TARGETS = [0x40_0000, 0x40_1000, 0x60_0000, 0x80_0000]
TINY = CacheGeometry(1, 2)


class DeviceTlbMachine(DriverMachine):
    """Devices with device-TLBs of two entries, some of which may use them."""

    ram = RAM
    targets = TARGETS
    device_tlbs = True

    @initialize()
    def start(self) -> None:
        super().start()
        memory = self.driver.machine.memory
        for page in (*range(0, FRAMES.start, 4096), *range(FRAMES.stop, RAM, 4096)):
            memory.write(page, page.to_bytes(8, "little"))
        core = self.driver.machine.core
        self.ports = {device: core.create_port(0, device) for device in DEVICES}
        for port in self.ports.values():
            port.add_device_tlb(TINY.parameters()).enable()
        self.used: list[tuple[int, int, int]] = []

    device = st.sampled_from(DEVICES)
    iova = st.sampled_from(IOVAS)

    @rule(domain=st.sampled_from([0, 1]), device=device, forget=st.booleans())
    def attach_with_ats(self, domain, device, forget) -> None:
        invalidate = self.remembers(forget)
        self.driver.attach(self.domains[domain], device, ats=True, invalidate=invalidate)

    @rule(device=device, on=st.booleans())
    def switch(self, device, on) -> None:
        """Switch a device-TLB; off, it is empty (pci 3.1)."""
        self.ports[device].device_tlb.enable(on)
        if not on:
            assert self.ports[device].device_tlb.entries() == []
            self.oracle.invalidate_device_tlb(device)

    @rule(device=device, iova=iova, size=st.sampled_from([None, 4096, 0x20_0000]))
    def invalidate_device_tlb(self, device, iova, size) -> None:
        self.driver.invalidate_device_tlb(device, iova, size)
        self.driver.wait()

    @rule(device=device, iova=iova, at=st.sampled_from(list(AddressType)[1:3]))
    def ask(self, device, iova, at) -> None:
        """Ask the unit for a translation, or forge one; neither is the device-TLB's."""
        request = Request(iova, requester=device, at=at)
        allowed = self.oracle.allowed(request)
        result = self.driver.unit.core.translate(request)
        self.driver.faults()
        wrong = {answer: answer.differences(result) for answer in allowed}
        assert any(not differences for differences in wrong.values()), wrong

    @rule(device=device, iova=iova)
    def read_memory(self, device, iova) -> None:
        request = Request(iova, 8, requester=device)
        if self.ports[device].device_tlb.enabled:
            allowed = self.oracle.allowed_through_device_tlb(request)
        else:
            allowed = self.oracle.allowed(request)
        found = outcome(self.ports[device].read(iova, 8))
        self.driver.faults()
        assert found in {self.expected(answer) for answer in allowed}, allowed

    def expected(self, answer: Answer) -> Any:
        """Return what a read finds whose request gets an answer."""
        if answer.failure is not None:
            return answer.fault
        if answer.outcome is not Outcome.MEMORY:
            return Status.UNSUPPORTED_REQUEST
        if not answer.permissions:
            return Status.NOT_TRANSLATED
        if answer.address >= RAM:
            return Status.UNSUPPORTED_REQUEST
        return self.driver.memory.read(answer.address, 8)

    @rule(
        domain=st.sampled_from([0, 1]),
        device=device,
        iova=iova,
        size=st.sampled_from(SIZES),
        which=st.integers(0, len(TARGETS) - 1),
        permissions=st.sampled_from(["rw", "w"]),
        small=st.booleans(),
    )
    def use(self, domain, device, iova, size, which, permissions, small) -> None:
        """Map a range, and have its first and its last page in a device's device-TLB."""
        self.attach_with_ats(domain, device, False)
        self.map(domain, iova, size, which, permissions, small, False)
        self.used.append((domain, iova, size))
        self.read_ends(device, iova, size)

    @precondition(lambda self: self.used)
    @rule(which=st.integers(0, 63), device=device, forget=st.booleans())
    def use_no_more(self, which, device, forget) -> None:
        """Unmap what was in use; a device tries it all the same."""
        domain, iova, size = self.used.pop(which % len(self.used))
        self.unmap(domain, iova, size, forget)
        self.read_ends(device, iova, size)

    def read_ends(self, device: int, iova: int, size: int) -> None:
        self.read_memory(device, iova)
        self.read_memory(device, iova + size - 4096)

    @precondition(lambda self: not self.careless)
    @invariant()
    def no_device_tlb_is_stale(self) -> None:
        for device, port in self.ports.items():
            for entry in port.device_tlb.entries():
                request = Request(
                    entry.address, requester=device, at=AddressType.TRANSLATION_REQUEST
                )
                answer = self.walker().walk(request)
                assert (answer.address, answer.page_shift) == (entry.output, entry.page_shift)


def outcome(completion: Completion) -> Any:
    """Return what a read brought: data, a fault code, or why it went nowhere."""
    if completion.ok:
        return completion.data
    return completion.fault or completion.status


CASES = {
    f"Test{vendor.capitalize()}{name}": type(
        name, (DeviceTlbMachine,), {"vendor": vendor, "lookup": lookup, "careless": careless}
    ).TestCase
    for vendor in ("vtd", "amdvi")
    for name, lookup, careless in (
        ("Strict", IotlbLookup.BY_REQUESTER, False),
        ("Careless", IotlbLookup.BY_REQUESTER, True),
        ("CarelessByDomain", IotlbLookup.BY_DOMAIN, True),
    )
}
for _name, _case in CASES.items():
    _case.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
    globals()[_name] = _case
del _name, _case
