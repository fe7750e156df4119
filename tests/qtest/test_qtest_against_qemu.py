"""What the server shows beside what a real QEMU shows: registers bit for bit, places, lines."""

import pytest
from qtest_peer import Peer

from iommu_emu.qemu import clean_environment

VER, CAP, ECAP = 0xFED9_0000, 0xFED9_0008, 0xFED9_0010
EDU_BAR = 0xE000_0000
RAISE, ACKNOWLEDGE = 0x60, 0x64


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
        return [peer.config_read(0x20, offset) for offset in (0x00, 0x08, 0x10, 0x2C, 0x3C)]

    ours, theirs = both(f"-machine q35 -nodefaults -device {driver},addr=4.0", identify)
    assert [f"{value:x}" for value in ours] == [f"{value:x}" for value in theirs]


@pytest.mark.parametrize("slot", [0x02, 0x03, 0x18, 0x1A, 0x1D, 0x1E])
def test_qemu_interrupt_comes_out_at_the_same_line(both, slot):
    def interrupt(peer):
        peer.ok("irq_intercept_in ioapic")
        peer.config_write(slot << 3, 0x10, EDU_BAR)
        peer.config_write(slot << 3, 0x04, 6, "w")
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
        peer.config_write(edu, 0x10, EDU_BAR)
        peer.config_write(edu, 0x04, 6, "w")
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
        "-machine none -device edu",
    ],
)
def test_qemu_refuses_the_same(both, arguments):
    ours, theirs = both(arguments, lambda peer: peer.end()[0])
    assert ours == theirs == 1
