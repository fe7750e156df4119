"""Random calls of Xen, good and bad, beside a naive model of who has which device.

Whatever is refused changes nothing, and at the end everything is free again.
"""

import random

import pytest
from xen_bed import FIRMWARE, FRAMES, OTHER_RAM, RAM, Bed

from iommu_emu import Bridge
from iommu_emu.devices import MaliciousDevice
from iommu_emu.pci.capabilities import PortType
from iommu_emu.refused import RefusedError
from iommu_emu.xen import Xen, hypervisor

STEPS = 90
GUEST_SIZE = 0x1_0000
GUEST_RAM = [RAM.start + number * 0x80_0000 for number in range(1, 4)]
SECRET = b"of the hardware domain's"

PARAMETERS = (
    "iommu=quarantine=scratch-page",
    "iommu=no-quarantine dom0-iommu=strict",
    "dom0-iommu=passthrough ats",
    "iommu=quarantine dom0-iommu=strict ats",
)


class Accelerator(MaliciousDevice):
    ats = True


class Run:
    """A Xen with up to four devices, and who has them."""

    def __init__(self, vendor, parameters, seed):
        self.random = random.Random(f"{vendor} {parameters} {seed}")
        self.bed = Bed(vendor, preset="default-ats")
        # The device's own page; a page in a guest's way; one that no page table reaches.
        for base in (FIRMWARE, GUEST_RAM[2], 1 << 50):
            self.bed.reserve(base)
        self.xen = self.bed.boot(parameters)
        (self.driver,) = self.xen.drivers.values()
        self.bed.machine.memory.write(RAM.start, SECRET)
        for start in GUEST_RAM:
            self.bed.machine.memory.write(start + 0x8000, start.to_bytes(8, "little"))
        self.functions = [self.bed.device]
        self.owner = {self.bed.device: self.xen.hardware_domain}
        self.guests = {}  # to where their memory is
        self.frames = self.count_frames()

    def count_frames(self):
        """Return how many frames are free or hold a page table, also those of quarantine."""
        tables = [frame for d in self.driver.domains.values() for frame in d.table.frames()]
        own = {d.quarantine for d in self.xen.devices.values()} - {None}
        return self.driver.frames.available + len(tables) + sum(len(q.shared) for q in own)

    def state(self):
        """Return all that a call may change, but for what a quarantine is made ready with."""
        domains = [self.xen.hardware_domain, self.xen.dom_io, *self.xen.guests.values()]
        quarantines = {d.quarantine.domain.id for d in self.xen.devices.values() if d.quarantine}
        return {
            "devices": {str(d): (str(d.owner), d.listed) for d in self.xen.devices.values()},
            "guests": sorted(self.xen.guests),
            "memory": {str(d): list(d.memory) for d in domains},
            "reserved": {str(d): sorted(d.identity) for d in domains},
            "mapped": {str(d): [t.table.mapped for t in d.tables.values()] for d in domains},
            "attached": dict(self.driver.attached),
            "domains": sorted(self.driver.domains.keys() - quarantines),
            "frames": self.count_frames(),
        }

    # ---- what is done ------------------------------------------------------------------------

    def create(self):
        start = self.random.choice((*GUEST_RAM, *GUEST_RAM, 0, 123, RAM.stop))
        size = self.random.choice((*[GUEST_SIZE] * 5, 0, -0x1000, 100))
        gfn = self.random.choice((*[None] * 5, FIRMWARE >> 12, -1, 1 << 60))
        guest = self.xen.create_domain("guest", range(start, start + size), gfn)
        self.guests[guest] = start

    def assign(self):
        xen, function = self.xen, self.random.choice(self.functions)
        domain = self.random.choice((*self.guests, *self.guests, xen.dom_io, xen.hardware_domain))
        xen.assign(function, domain, relaxed=self.random.random() < 0.3)
        self.owner[function] = domain

    def deassign(self):
        function = self.random.choice(self.functions)
        before = self.xen.device(function)
        kept = before.listed or self.xen.parameters.quarantine.value != "none"
        self.xen.deassign(function)
        kept &= self.owner[function] is not self.xen.dom_io
        self.owner[function] = self.xen.dom_io if kept else self.xen.hardware_domain

    def destroy(self):
        if not self.guests:
            return
        guest = self.random.choice(list(self.guests))
        self.xen.destroy_domain(guest)
        del self.guests[guest]
        for function, owner in self.owner.items():
            if owner is guest:
                self.owner[function] = self.xen.device(function).owner
        with pytest.raises(ValueError, match="is no guest of this Xen"):
            self.xen.destroy_domain(guest)

    def plug(self):
        if len(self.functions) == 4:
            return
        where = f"00:0{self.random.choice((2, 3))}.{self.random.randrange(4)}"
        kind = self.random.choice((MaliciousDevice, Accelerator))
        function = self.bed.machine.attach(kind("late"), where)
        try:
            self.xen.add(function)
        except Exception:
            self.bed.machine.remove(function)
            raise
        self.functions.append(function)
        self.owner[function] = self.xen.hardware_domain

    def unplug(self):
        """Take a device out, before Xen hears of it or after that.

        One with a device-TLB goes after that: it would hang the host, for it never answers.
        """
        if len(self.functions) == 1:
            return
        function = self.functions.pop(self.random.randrange(len(self.functions)))
        calls = [self.xen.remove, self.bed.machine.remove]
        if function.ats_capability is None:
            self.random.shuffle(calls)
        for call in calls:
            call(function)
        del self.owner[function]

    def step(self):
        """Do something, now and then with few frames left; nothing has changed if it fails."""
        calls = (self.create, self.assign, self.deassign, self.destroy, self.plug, self.unplug)
        call = self.random.choices(calls, (4, 8, 5, 1, 3, 1))[0]
        frames, left = self.driver.frames, self.random.choice((0, 1, 2, 4, 1 << 20, 1 << 20))
        taken = [frames.take() for _ in range(frames.available - left)]
        before = self.state()
        dying = call == self.destroy
        try:
            call()
        except (ValueError, RefusedError, MemoryError):
            assert dying or self.state() == before
        finally:
            frames.release(taken)
        if dying:  # what could not be taken then can be now
            for guest in [guest for guest in self.guests if guest.dying]:
                self.xen.destroy_domain(guest)
                del self.guests[guest]
            for function in self.functions:
                self.owner[function] = self.xen.device(function).owner

    # ---- what must hold ----------------------------------------------------------------------

    def check_reach(self):
        xen = self.xen
        for function in self.functions:
            owner = self.owner[function]
            assert xen.device(function).owner is owner
            for guest, start in self.guests.items():
                where = guest.memory[0].address if guest is owner else start
                got = function.read(where + 0x8000, 8)
                mine = got.ok and int.from_bytes(got.data, "little") == start
                relaxed = owner is xen.hardware_domain and not xen.parameters.dom0_strict
                assert mine is (guest is owner or relaxed)
            got = function.read(RAM.start, len(SECRET))
            assert (got.ok and got.data == SECRET) is (owner is xen.hardware_domain)


@pytest.mark.parametrize("vendor", ["vtd", "amdvi"])
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_random_calls_leave_nothing_behind(vendor, parameters):
    run = Run(vendor, parameters, 0)
    for _ in range(STEPS):
        run.step()
        run.check_reach()
    for guest in run.guests:
        run.xen.destroy_domain(guest)
    for function in run.functions:
        run.xen.remove(function)
    assert not run.driver.attached
    assert set(run.driver.domains.values()) == set(run.xen.hardware_domain.tables.values())
    assert run.count_frames() == run.frames


def test_boot_goes_on_where_reserved_memory_is_out_of_reach(bed):
    bed.reserve(1 << 50)
    bed.boot()
    line = {
        "vtd": "(XEN) [VT-D]d0: RMRR mapping failed",
        "amdvi": "(XEN) AMD-Vi: Warning: d0: unity mapping failed for 0000:00:02.0",
    }
    assert line[bed.vendor] in bed.lines
    assert bed.reaches(RAM.start)


def test_device_that_has_gone_leaves_nothing_attached(bed):
    bed.boot("iommu=quarantine=scratch-page")
    bed.give()
    bed.machine.remove(bed.device)
    bed.xen.remove(bed.device)
    assert [driver.attached for driver in bed.xen.drivers.values()] == [{}]


def test_device_that_leaves_does_not_take_a_shared_requester_id_along(bed):
    bridge = bed.machine.attach(Bridge("bridge", kind=PortType.PCIE_TO_PCI))
    first, second = (
        bed.machine.attach(MaliciousDevice(name), under=bridge) for name in ("first", "second")
    )
    xen = bed.boot()
    xen.remove(first)
    assert second.read(RAM.start, 4).ok


def test_device_that_leaves_a_guest_takes_its_reserved_memory_along(bed):
    bed.reserve()
    bed.boot()
    guest = bed.give()
    bed.xen.remove(bed.device)
    assert list(guest.identity) == []


def test_hardware_domain_loses_the_memory_of_each_guest(bed):
    xen = bed.boot("dom0-iommu=strict")
    for start in GUEST_RAM:
        xen.create_domain("guest", range(start, start + GUEST_SIZE))
    places = [start + offset for start in GUEST_RAM for offset in (-0x1000, 0, GUEST_SIZE)]
    assert [bed.reaches(place) for place in places] == [True, False, True] * 3


def test_domain_ids_begin_anew_after_the_last_one(bed, monkeypatch):
    monkeypatch.setattr(hypervisor, "FIRST_RESERVED", 4)
    xen = bed.boot()
    kept = bed.guest()
    numbers = []
    for _ in range(4):
        numbers.append(xen.create_domain("short-lived", OTHER_RAM).number)
        xen.destroy_domain(xen.guests[numbers[-1]])
    assert (kept.number, numbers) == (1, [2, 3, 2, 3])


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (range(RAM.start, RAM.start + 0x10_0000), "ram and frames must not overlap"),
        (range(0x1000, 0x1_0000_0000_0000), "ram and frames must not overlap"),
        (range(0x400_0000, 0x500_0000), "not inside one region"),
        (range(0x1000, 0x1800), "frames must be a page-aligned range"),
    ],
)
def test_frames_that_make_no_sense_are_refused(bed, frames, message):
    with pytest.raises(ValueError, match=message):
        Xen(bed.machine, frames=frames, ram=RAM)


@pytest.mark.parametrize("ram", [range(0x100_0800, 0x200_0000), range(0x200_0000, 0x100_0000)])
def test_ram_that_makes_no_sense_is_refused(bed, ram):
    with pytest.raises(ValueError, match="ram must be a page-aligned range"):
        Xen(bed.machine, frames=FRAMES, ram=ram)


def test_reserved_memory_in_the_way_is_logged_with_its_error_number(bed):
    bed.reserve()
    xen = bed.boot()
    guest = xen.create_domain("guest", range(RAM.start, RAM.start + GUEST_SIZE), FIRMWARE >> 12)
    guest.table(*xen.drivers.values())
    with pytest.raises(RefusedError, match="EBUSY"):
        xen.assign(bed.device, guest)
    assert bed.lines == ["(XEN) d1: assign (0000:00:02.0) failed (-16)"]
