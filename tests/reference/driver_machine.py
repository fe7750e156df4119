"""A state machine: a driver of either vendor, strict or careless, under the stale-entry oracle."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.core import Access, IotlbLookup, NotRamError, Request
from iommu_emu.domain import Domain
from iommu_emu.driver import Driver
from iommu_emu.machine import Machine
from iommu_emu.reference import Walker
from iommu_emu.reference import amdvi as amdvi_reference
from iommu_emu.reference import vtd as vtd_reference
from iommu_emu.reference.oracle import Oracle
from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

BASE = 0xFED9_0000
FRAMES = range(0x10_0000, 0x40_0000)
DEVICES = [0x0008, 0x0009, 0x0108]
IOVAS = [0, 0x1000, 0x1F_F000, 0x20_0000, 0x4000_0000]
SIZES = [0x1000, 0x2000, 0x20_0000, 0x40_1000]
TARGETS = [0x1000_0000, 0x1000_1000, 0x2000_0000, 0x8000_0000]


class DriverMachine(RuleBasedStateMachine):
    """A driver that may forget invalidations, on VT-d."""

    vendor = "vtd"
    lookup = IotlbLookup.BY_REQUESTER
    negative = False
    careless: ClassVar[bool] = True
    ram = FRAMES.stop
    targets = TARGETS
    device_tlbs = False

    @initialize()
    def start(self) -> None:
        machine = Machine(self.ram)
        config: dict[str, Any] = {"base": BASE, "geometry": "tiny-2", "iotlb_lookup": self.lookup}
        self.driver: Driver[Any]
        if self.vendor == "vtd":
            capabilities = Capabilities(caching_mode=self.negative, device_tlbs=self.device_tlbs)
            vtd = VtdUnit(machine, VtdConfig(capabilities=capabilities, **config))
            self.driver = VtdDriver(machine, vtd, FRAMES)
        else:
            amdvi = AmdviUnit(
                machine, AmdviConfig(np_cache=self.negative, device_tlbs=self.device_tlbs, **config)
            )
            self.driver = AmdviDriver(machine, amdvi, FRAMES, buses=2)
        self.driver.start()
        self.oracle: Oracle[Any] = Oracle(
            self.walker(), by_domain=self.lookup is IotlbLookup.BY_DOMAIN, negative=self.negative
        )
        self.listen()
        self.domains: list[Domain] = [self.driver.create_domain(3), self.driver.create_domain(4)]
        for device, domain in zip(DEVICES, self.domains, strict=False):
            self.driver.attach(domain, device)

    def walker(self) -> Walker[Any]:
        unit = self.driver.unit
        if isinstance(unit, VtdUnit):
            return vtd_reference.Walker(vtd_reference.Unit.of(unit), self.read)
        return amdvi_reference.Walker(amdvi_reference.Unit.of(unit), self.read)

    def read(self, address: int, length: int) -> bytes | None:
        try:
            return self.driver.memory.read(address, length)
        except NotRamError:
            return None

    def listen(self) -> None:
        """Let the oracle hear every command that the driver submits."""
        submit = self.driver.submit
        tell = vtd_reference.invalidate if self.vendor == "vtd" else amdvi_reference.invalidate

        def heard(*commands: bytes) -> None:
            submit(*commands)
            for command in commands:
                tell(self.oracle, command)

        self.driver.submit = heard

    def remembers(self, forget: bool) -> bool:
        return not (forget and self.careless)

    domain = st.sampled_from([0, 1])
    iova = st.sampled_from(IOVAS)
    size = st.sampled_from(SIZES)
    device = st.sampled_from(DEVICES)
    forget = st.booleans()

    @rule(
        domain=domain,
        iova=iova,
        size=size,
        which=st.integers(0, len(TARGETS) - 1),
        permissions=st.sampled_from(["rw", "r", "w"]),
        small=st.booleans(),
        forget=forget,
    )
    def map(self, domain, iova, size, which, permissions, small, forget) -> None:
        try:
            self.domains[domain].map(
                iova,
                self.targets[which],
                size,
                permissions,
                4096 if small else None,
                invalidate=self.remembers(forget),
            )
        except ValueError as error:
            assert "is mapped already" in str(error)  # noqa: PT017

    @rule(domain=domain, iova=iova, size=size, forget=forget)
    def unmap(self, domain, iova, size, forget) -> None:
        try:
            self.domains[domain].unmap(iova, size, invalidate=self.remembers(forget))
        except ValueError as error:
            assert "is not mapped" in str(error) or "splits a page" in str(error)  # noqa: PT017

    @rule(domain=domain)
    def flush(self, domain) -> None:
        self.domains[domain].flush()

    @rule(domain=domain, device=device, forget=forget)
    def attach(self, domain, device, forget) -> None:
        self.driver.attach(self.domains[domain], device, invalidate=self.remembers(forget))

    @rule(device=device, forget=forget)
    def pass_through(self, device, forget) -> None:
        self.driver.pass_through(device, invalidate=self.remembers(forget))

    @rule(device=device, forget=forget)
    def detach(self, device, forget) -> None:
        if device in self.driver.attached:
            self.driver.detach(device, invalidate=self.remembers(forget))

    def requests(self) -> list[Request]:
        return [Request(iova, requester=device) for device in DEVICES for iova in IOVAS]

    @rule(device=device, iova=iova, access=st.sampled_from([Access.READ, Access.WRITE]))
    def translate(self, device, iova, access) -> None:
        request = Request(iova, requester=device, access=access)
        allowed = self.oracle.allowed(request)
        result = self.driver.unit.core.translate(request)
        self.driver.faults()
        wrong = {answer: answer.differences(result) for answer in allowed}
        assert any(not differences for differences in wrong.values()), wrong

    @precondition(lambda self: not self.careless)
    @rule()
    def nothing_is_stale(self) -> None:
        for request in self.requests():
            expected = self.walker().walk(request)
            result = self.driver.unit.core.translate(request)
            self.oracle.allowed(request)
            self.driver.faults()
            assert expected.differences(result) == []
