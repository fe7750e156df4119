"""What the server shows beside what a real QEMU shows: registers bit for bit, places, lines."""

import pytest
from qtest_peer import Peer

from iommu_emu.qemu import clean_environment

VER, CAP, ECAP = 0xFED9_0000, 0xFED9_0008, 0xFED9_0010
EDU_BAR = 0xE000_0000
RAISE, ACKNOWLEDGE = 0x60, 0x64


def edu_setup(peer, devfn):
    peer.config_write(devfn, 0x10, EDU_BAR)
    peer.config_write(devfn, 0x04, 6, "w")


@pytest.fixture
def both(qemu):
    """Do something with a machine of ours and with QEMU's; returns both results."""

    def both(arguments, act):
        results = []
        for command, env in ((None, None), (qemu.argv, clean_environment())):
            with Peer(arguments, command=command, env=env) as peer:
                results.append(act(peer))
        return results

    return both


@pytest.fixture(scope="module")
def pair(qemu):
    """A machine of ours and QEMU's, for what leaves nothing behind."""
    arguments = "-machine q35 -nodefaults -device intel-iommu"
    with (
        Peer(arguments) as ours,
        Peer(arguments, command=qemu.argv, env=clean_environment()) as theirs,
    ):
        yield ours, theirs


@pytest.mark.parametrize(
    "options",
    [
        *("", ",aw-bits=39", ",caching-mode=on", ",intremap=off", ",eim=on", ",snoop-control=on"),
        ",eim=on,caching-mode=on,snoop-control=on,aw-bits=39",
    ],
)
def test_qemu_reports_the_same_capabilities(both, options):
    ours, theirs = both(
        f"-machine q35 -nodefaults -device intel-iommu{options}",
        lambda peer: [peer.read(VER, 4), peer.read(CAP), peer.read(ECAP)],
    )
    assert [f"{value:x}" for value in ours] == [f"{value:x}" for value in theirs]


@pytest.mark.parametrize(
    ("defaults", "edu", "testdev"),
    [("-nodefaults", 1, 2), ("-net none", 2, 3), ("-vga none -net none", 1, 2)],
)
def test_qemu_puts_devices_at_the_same_places(both, defaults, edu, testdev):
    def identify(peer):
        return [peer.config_read(slot << 3, 0) for slot in (0, edu, testdev, 0x1F)]

    ours, theirs = both(f"-machine q35 {defaults} -device edu -device iommu-testdev", identify)
    assert ours == theirs == [0x29C0_8086, 0x11E8_1234, 0x0005_1B36, 0x2918_8086]


@pytest.mark.parametrize("driver", ["edu", "iommu-testdev"])
def test_qemu_device_has_the_same_identity(both, driver):
    def identify(peer):
        peer.config_write(0x20, 0x04, 0xFFFF, "w")
        peer.config_write(0x20, 0x10, 0xFFFF_FFFF)
        return [peer.config_read(0x20, offset) for offset in range(0, 0x44, 4)]

    ours, theirs = both(f"-machine q35 -nodefaults -device {driver},addr=4.0", identify)
    assert [f"{value:x}" for value in ours] == [f"{value:x}" for value in theirs]


def test_qemu_has_the_same_functions_on_bus_0(both):
    def scan(peer):
        functions = [at for at in range(256) if peer.config_read(at, 0) != 0xFFFF_FFFF]
        return [
            (at, offset, hex(peer.config_read(at, offset)))
            for at in functions
            for offset in range(0, 0x40, 4)
        ]

    ours, theirs = both("-machine q35 -nodefaults -device edu -device iommu-testdev", scan)
    assert ours == theirs


def test_qemu_keeps_the_same_of_edu_over_a_reset(both):
    def use(peer):
        peer.qmp_negotiate()
        peer.ok("irq_intercept_in ioapic")
        edu_setup(peer, 5 << 3)
        for offset, value in ((0x04, 5), (0x80, 0x1000), (0x88, 0x40000), (0x60, 3)):
            peer.write(EDU_BAR + offset, value, 4)
        peer.execute("system_reset")
        edu_setup(peer, 5 << 3)
        return [peer.read(EDU_BAR + offset, 4) for offset in (0x04, 0x24, 0x80, 0x88)]

    ours, theirs = both("-machine q35 -nodefaults -device edu,addr=5.0", use)
    assert ours == theirs


def test_qemu_takes_the_line_down_when_msi_is_enabled(both):
    def use(peer):
        peer.ok("irq_intercept_in ioapic")
        edu_setup(peer, 5 << 3)
        peer.write(EDU_BAR + RAISE, 1, 4)
        for control in (0xFFFF, 0):
            peer.config_write(5 << 3, 0x40, control << 16 | 5)
            peer.irqs.append(hex(peer.config_read(5 << 3, 0x40)))
        peer.write(EDU_BAR + RAISE, 2, 4)
        return peer.irqs

    ours, theirs = both("-machine q35 -nodefaults -device edu,addr=5.0", use)
    assert ours == theirs == ["raise 21", "lower 21", "0x810005", "0x800005", "raise 21"]


@pytest.mark.parametrize("slot", [0x02, 0x03, 0x18, 0x1A, 0x1D, 0x1E])
def test_qemu_interrupt_comes_out_at_the_same_line(both, slot):
    def interrupt(peer):
        peer.ok("irq_intercept_in ioapic")
        edu_setup(peer, slot << 3)
        peer.write(EDU_BAR + RAISE, 1, 4)
        peer.write(EDU_BAR + ACKNOWLEDGE, 1, 4)
        return peer.irqs

    ours, theirs = both(f"-machine q35 -nodefaults -device edu,addr={slot:x}.0", interrupt)
    assert ours == theirs


def test_qemu_bridges_rotate_interrupts_the_same(both):
    port, bridge, edu = 3 << 3, 0x100, 0x210

    def interrupt(peer):
        peer.ok("irq_intercept_in ioapic")
        for function, numbers in ((port, 0x0002_0100), (bridge, 0x0002_0201)):
            peer.config_write(function, 0x18, numbers)
            peer.config_write(function, 0x20, 0xE0F0_E000)
            peer.config_write(function, 0x04, 6, "w")
        edu_setup(peer, edu)
        peer.write(EDU_BAR + RAISE, 1, 4)
        peer.ok("endianness")
        return peer.irqs

    ours, theirs = both(
        "-machine q35 -nodefaults -device pcie-root-port,id=rp,addr=3.0,chassis=1 "
        "-device pcie-pci-bridge,id=br,bus=rp -device edu,bus=br,addr=2.0",
        interrupt,
    )
    assert ours == theirs == ["raise 21"]


@pytest.mark.parametrize(
    "commands",
    [
        ["write 0x1000 4 0x1122", "read 0x1000 6"],
        ["memset 0x1000 4 0x1ff", "b64read 0x1000 5"],
        ["b64write 0x1000 2 AQID", "read 0x1000 4"],
        ["write 0x1000 4 0x"],
        ["bogus"],
        ["endianness"],
        ["writeb 010000 0x1ff", "readw 4096"],
        ["outl 0xcf8 0x80000002", "inl 0xcf8", "inw 0xcfc", "inb 0xcfc"],
        ["outl 0xcf8 0x80002000", "inl 0xcfc", "inb 0xcff"],
        ["inl 0x1234"],
        ["read 0xfed90007 12"],
        ["readq 0xfed90004", "readw 0xfed90008"],
        ["readl 0xd0000000", "readl 0xfee00000", "readq 0x7fffffc", "readl 0xfffffffffffffffe"],
        ["writel 0xa0000 5", "readl 0xa0000", "writel 0xc0000 5", "readl 0xc0000"],
        ["memset 0x0 0x8000000 7", "readl 0x7fffffc", "memset 0 0x8000000 0"],
        ["outb 0xcf9 0x0a", "inb 0xcf9"],
        ["irq_intercept_in bogus"],
        ["irq_intercept_in ioapic", "irq_intercept_out ioapic", "irq_intercept_in ioapic x"],
    ],
)
def test_qemu_answers_the_same(pair, commands):
    ours, theirs = ([peer.ask(command) for command in commands] for peer in pair)
    assert ours == theirs


@pytest.mark.parametrize(
    "arguments",
    [
        "-machine q35 -device bogus",
        "-machine q35 -device edu,addr=40.0",
        "-machine q35 -device edu,bogus=1",
        "-machine q35 -nodefaults -device edu,addr=3 -device edu,addr=3",
        "-machine q35 -device intel-iommu -device intel-iommu",
        "-machine q35 -device intel-iommu,eim=on,intremap=off",
        "-machine q35 -device intel-iommu,aw-bits=40",
        "-machine q35 -device edu,addr=4.0 -device edu,addr=4.1",
        "-machine q35 -device edu,addr=4.1 -device edu,addr=4.0",
        "-machine none -device edu",
    ],
)
def test_qemu_refuses_the_same(both, arguments):
    ours, theirs = both(arguments, lambda peer: peer.end()[0])
    assert ours == theirs == 1
