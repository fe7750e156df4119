import gc
import weakref

import pytest

from iommu_emu import Bar, Device, Machine, Status

MSI_ADDRESS = 0xFEE0_0000


class Scratch(Device):
    """A device with one BAR of memory, which counts its accesses."""

    bar_layout = (Bar(0, 4096), Bar(2, 1 << 20, wide=True))
    msi_vectors = 1

    def __init__(self, name=None):
        super().__init__(name)
        self.memory = bytearray(4096)
        self.accesses = []

    def bar_read(self, bar, offset, size):
        self.accesses.append(("read", bar, offset, size))
        return int.from_bytes(self.memory[offset : offset + size], "little")

    def bar_write(self, bar, offset, size, value):
        self.accesses.append(("write", bar, offset, size))
        self.memory[offset : offset + size] = value.to_bytes(size, "little")


@pytest.fixture
def scratch(machine):
    return machine.attach(Scratch(), "00:05.0")


@pytest.fixture
def other(machine):
    return machine.attach(Device("other"), "00:06.0")


def test_machine_writes_unit_registers_at_their_address(machine, unit):
    machine.mmio_write(unit.base + unit.offset("FEDATA"), 4, 0x33)
    assert unit.read("FEDATA") == 0x33


def test_machine_reads_unit_registers_at_their_address(machine, unit):
    assert machine.mmio_read(unit.base + unit.offset("CAP"), 8) == unit.read("CAP")


def test_machine_mmio_reaches_the_device_model(machine, scratch):
    machine.mmio_write(scratch.bar_address(0) + 0x10, 4, 0x1234_5678)
    assert scratch.accesses == [("write", 0, 0x10, 4)]
    assert machine.mmio_read(scratch.bar_address(0) + 0x10, 4) == 0x1234_5678


def test_machine_mmio_reaches_ram(machine):
    machine.mmio_write(0x1000, 8, 0x1122_3344_5566_7788)
    assert machine.mmio_read(0x1004, 4) == 0x1122_3344


def test_machine_mmio_to_nothing_reads_all_ones_and_drops_writes(machine):
    machine.mmio_write(0x9000_0000, 4, 0)
    assert machine.mmio_read(0x9000_0000, 4) == 0xFFFF_FFFF


def test_machine_mmio_refuses_a_size_of_3(machine):
    with pytest.raises(ValueError, match=r"^size must be 1, 2, 4 or 8, not 3$"):
        machine.mmio_read(0, 3)


def test_machine_mmio_refuses_a_value_that_does_not_fit(machine):
    with pytest.raises(ValueError, match=r"^value must fit in 1 bytes, not 0x100$"):
        machine.mmio_write(0, 1, 256)


def test_machine_gives_bars_addresses_of_their_own(machine):
    first, second = machine.attach(Scratch()), machine.attach(Scratch())
    bases = [device.bar_address(index) for device in (first, second) for index in (0, 2)]
    assert bases == [0xE000_0000, 0xE010_0000, 0xE000_1000, 0xE020_0000]


def test_machine_bar_moves_with_its_register(machine, scratch):
    machine.config_write("00:05.0", 0x10, 4, 0xD000_0000)
    machine.mmio_read(0xD000_0000, 4)
    machine.mmio_read(0xE000_0000, 4)
    assert scratch.accesses == [("read", 0, 0, 4)]


def test_machine_bar_is_not_decoded_without_memory_enable(machine, scratch):
    machine.config_write("00:05.0", 0x04, 2, 0x0004)
    assert machine.mmio_read(0xE000_0000, 4) == 0xFFFF_FFFF


def test_machine_bar_over_ram_is_not_decoded(machine, scratch):
    machine.config_write("00:05.0", 0x10, 4, 0x4000)
    machine.mmio_write(0x4000, 4, 7)
    assert scratch.accesses == []
    assert machine.memory.read_u32(0x4000) == 7


def test_machine_bar_over_a_units_registers_is_not_decoded(machine, unit, scratch):
    machine.config_write("00:05.0", 0x10, 4, unit.base)
    machine.mmio_read(unit.base, 4)
    assert scratch.accesses == []


def test_peer_write_reaches_the_device_model_in_aligned_pieces(machine, scratch, other):
    assert other.dma.write(scratch.bar_address(0) + 2, bytes(range(1, 15))).ok
    machine.service()
    assert scratch.accesses == [("write", 0, 2, 2), ("write", 0, 4, 4), ("write", 0, 8, 8)]
    assert scratch.memory[2:16] == bytes(range(1, 15))


def test_peer_read_completes_when_the_outbox_is_serviced(machine, scratch, other):
    scratch.memory[:200] = bytes(range(200))
    completion = other.dma.read(scratch.bar_address(0), 200)
    assert completion.pending
    machine.service()
    assert completion.data == bytes(range(200))


def test_peer_read_of_a_bar_that_went_away_is_unsupported(machine, scratch, other):
    completion = other.dma.read(scratch.bar_address(0), 4)
    scratch.config.write(0x04, 2, 0)
    machine.service()
    assert completion.status is Status.UNSUPPORTED_REQUEST


def test_peer_access_to_a_units_registers_is_unsupported(machine, unit, other):
    completion = other.dma.write(unit.base + unit.offset("GCMD"), bytes(4))
    assert completion.status is Status.UNSUPPORTED_REQUEST


def test_machine_devices_that_write_to_each_other_for_ever_do_not_hang_it(machine):
    class Echo(Device):
        bar_layout = (Bar(0, 4096),)
        written = 0

        def bar_write(self, bar, offset, size, value):
            self.written += 1
            self.dma.write(self.bar_address(0), b"echo")

    echo = machine.attach(Echo())
    machine.mmio_write(echo.bar_address(0), 4, 0)
    before = echo.written
    machine.service()
    assert (before, echo.written > before) == (1025, True)


def test_interrupt_of_a_device_reaches_the_sink(machine, other):
    machine.advance(5)
    other.dma.write(MSI_ADDRESS, (0x41).to_bytes(4, "little"))
    (interrupt,) = machine.interrupts
    assert (interrupt.time, interrupt.vector, interrupt.requester, interrupt.source) == (
        5,
        0x41,
        0x0030,
        "device",
    )


def test_interrupt_of_a_unit_carries_its_number(machine, unit, block_everything):
    unit.write("FEDATA", 0x55)
    unit.write("FEADDR", MSI_ADDRESS)
    unit.write("FECTL", 0)
    block_everything(unit)
    unit.translate(0x10, 0x1000)
    assert [(i.vector, i.source) for i in machine.interrupts] == [(0x55, 0)]


def test_interrupt_sink_can_be_cleared(machine, other):
    other.dma.write(MSI_ADDRESS, bytes(4))
    machine.interrupts.clear()
    assert machine.interrupts == []


def test_device_msi_is_sent_as_software_programmed_it(machine, scratch):
    at = scratch.config.find(0x05)
    machine.config_write("00:05.0", at + 4, 4, MSI_ADDRESS)
    machine.config_write("00:05.0", at + 12, 2, 0x66)
    machine.config_write("00:05.0", at + 2, 2, 1)
    assert scratch.interrupt()
    assert machine.interrupts[0].vector == 0x66


def test_device_msix_table_is_in_its_bar(machine):
    class WithMsix(Scratch):
        msi_vectors = 0
        msix_vectors = 2
        msix_bar = 0
        msix_table = 0x800

    device = machine.attach(WithMsix(), "00:07.0")
    table = device.bar_address(0) + 0x800
    machine.mmio_write(table + 16, 8, MSI_ADDRESS)
    machine.mmio_write(table + 24, 8, 0x77)
    machine.config_write("00:07.0", device.config.find(0x11) + 2, 2, 0x8000)
    assert device.interrupt(1)
    assert [i.vector for i in machine.interrupts] == [0x77]
    assert device.accesses == []


def test_device_msix_must_fit_its_bar():
    class TooMany(Device):
        bar_layout = (Bar(0, 4096),)
        msix_vectors = 256
        msix_bar = 0

    with pytest.raises(ValueError, match="MSI-X of 256 vectors ends at 0x1020, BAR 0 has 0x1000"):
        TooMany()


def test_device_before_attach_says_what_is_missing():
    with pytest.raises(RuntimeError, match="lonely has no dma yet: attach it to a machine first"):
        Device("lonely").dma.read(0, 4)


def test_machine_reset_resets_units_and_functions(machine, unit, scratch, block_everything):
    block_everything(unit)
    machine.reset()
    assert (unit.field("GSTS", "TES"), scratch.config.read(0x04, 2)) == (0, 0)


def test_machine_memory_can_have_several_pieces():
    machine = Machine([(0, 4096), (1 << 32, 8192)])
    assert machine.memory.ranges == [(0, 4096), (1 << 32, 8192)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transactions": 0}, r"transactions must be in 0x1\.\.0x1000, not 0x0"),
        ({"messages": 63}, r"messages must be in 0x40\.\.0x10000, not 0x3f"),
        ({"trace_events": 3}, "trace_events must be 0 or a power of two, not 3"),
    ],
)
def test_machine_names_the_option_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Machine(**options)


def test_machine_with_devices_in_a_cycle_is_collected():
    machines = []
    for _ in range(64):
        cyclic = Machine(4096)
        machines.append(weakref.ref(cyclic))
        device = cyclic.attach(Device())
        device.me = device
        device.dma.set_latency(10, 10)
        device.dma.read(0, 4)
    del cyclic, device
    gc.collect()
    assert not [reference for reference in machines if reference() is not None]


def test_machine_trace_records_a_dma():
    machine = Machine(4096, trace_events=16)
    device = machine.attach(Device())
    machine.core.trace(True)
    device.dma.write(0x100, b"x")
    assert machine.core.trace_read()["address"].tolist() == [0x100]


def test_machine_trace_needs_a_ring(machine):
    with pytest.raises(RuntimeError, match="tracing needs a machine made with trace_events > 0"):
        machine.core.trace(True)
