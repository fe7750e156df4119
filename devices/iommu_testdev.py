"""QEMU's `iommu-testdev` (11.0), register-compatible: one write through the IOMMU, read back.

Written from its documented behaviour (QEMU's docs/specs/iommu-testdev). Registers of BAR 0, all
accessed by 4 bytes; an access of 8 is two of 4, the lower one first:

    00  trigger: reading does the armed transfer    04, 08  IOVA, low and high
    0c  length    10  result    14  doorbell: 1 arms, 0 disarms    18  attributes
    1c, 20  physical address, low and high, at which the data is read back

A transfer writes a pattern at the IOVA as the device, and reads physical memory behind the IOMMU's
back, as a CPU does: RAM, registers and BARs but its own. The attributes carry Arm's security state
and mean nothing on x86 but for their check.
"""

from __future__ import annotations

from enum import IntEnum

from iommu_emu.bar_windows import aligned_pieces
from iommu_emu.core import MAX_TRANSFER, NotRamError
from iommu_emu.devices.base import Bar, Device
from iommu_emu.memory import PAGE

INTERRUPT_RANGE = range(0xFEE0_0000, 0xFEF0_0000)  # a CPU reads all ones there
PATTERN = (0x12345678).to_bytes(4, "little")
NON_SECURE = 1

__all__ = ["IommuTestdev", "Register", "TestResult"]


class Register(IntEnum):
    """Offsets in BAR 0."""

    TRIGGER = 0x00
    IOVA_LOW = 0x04
    IOVA_HIGH = 0x08
    LENGTH = 0x0C
    RESULT = 0x10
    DOORBELL = 0x14
    ATTRIBUTES = 0x18
    PHYSICAL_LOW = 0x1C
    PHYSICAL_HIGH = 0x20


class TestResult(IntEnum):
    """Values of the result register; 0 is success."""

    __test__ = False  # not a test class, whatever its name

    SUCCESS = 0
    BAD_LENGTH = 0xDEAD0001
    WRITE_FAILED = 0xDEAD0002
    READ_FAILED = 0xDEAD0003
    MISMATCH = 0xDEAD0004
    NOT_ARMED = 0xDEAD0005
    BAD_ATTRIBUTES = 0xDEAD0006
    ARMED = 0xFFFFFFFE
    IDLE = 0xFFFFFFFF


class IommuTestdev(Device):
    """QEMU's `iommu-testdev`.

    A length of more than 16 MiB is refused like one of 0, where QEMU tries to allocate it.

    Args:
        name: for people.
    """

    vendor_id = 0x1B36
    device_id = 0x0005
    class_code = 0x00FF00  # as QEMU 11.1 shows
    subsystem = (0x1AF4, 0x1100)
    port_type = None  # a conventional PCI function, as in QEMU
    bar_layout = (Bar(0, 4096),)

    def __init__(self, name: str = "iommu-testdev") -> None:
        super().__init__(name)
        self.on_reset()

    def on_reset(self) -> None:
        """Clear the registers."""
        self._registers = dict.fromkeys(Register, 0)
        self._registers[Register.RESULT] = TestResult.IDLE
        self._registers[Register.ATTRIBUTES] = NON_SECURE << 1
        self._armed = False

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Read a register; reading the trigger does the transfer."""
        if size == 8:
            low = self.bar_read(bar, offset, 4)
            return low | self.bar_read(bar, offset + 4, 4) << 32
        if size != 4 or offset not in self._registers:
            return 0
        register = Register(offset)
        if register is Register.TRIGGER:
            armed, self._armed = self._armed, False
            self._registers[Register.RESULT] = self._run() if armed else TestResult.NOT_ARMED
            return 0
        return self._registers[register]

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write a register; the doorbell arms or disarms."""
        if size == 8:
            self.bar_write(bar, offset, 4, value & 0xFFFFFFFF)
            self.bar_write(bar, offset + 4, 4, value >> 32)
            return
        if size != 4 or offset not in self._registers:
            return
        register = Register(offset)
        if register is Register.DOORBELL:
            self._armed = bool(value & 1)
            self._registers[Register.RESULT] = TestResult.ARMED if self._armed else TestResult.IDLE
        elif register is not Register.TRIGGER:
            self._registers[register] = value

    def _address(self, low: Register, high: Register) -> int:
        return self._registers[low] | self._registers[high] << 32

    def _run(self) -> TestResult:
        length = self._registers[Register.LENGTH]
        if not 0 < length <= MAX_TRANSFER:
            return TestResult.BAD_LENGTH
        attributes = self._registers[Register.ATTRIBUTES]
        secure, space, valid = attributes & 1, attributes >> 1 & 3, attributes >> 3 & 1
        if valid and space <= NON_SECURE and secure == space:
            return TestResult.BAD_ATTRIBUTES
        data = (PATTERN * (length // 4 + 1))[:length]
        if not self.dma.write(self._address(Register.IOVA_LOW, Register.IOVA_HIGH), data).ok:
            return TestResult.WRITE_FAILED
        physical = self._address(Register.PHYSICAL_LOW, Register.PHYSICAL_HIGH)
        try:
            same = self.machine.memory.read(physical, length) == data
        except NotRamError:
            if not all(map(self._readable, range(physical & -PAGE, physical + length, PAGE))):
                return TestResult.READ_FAILED
            same = all(
                self.machine.mmio_read(start, size).to_bytes(size, "little")
                == data[start - physical : start - physical + size]
                for start, size in aligned_pieces(physical, length)
            )
        return TestResult.SUCCESS if same else TestResult.MISMATCH

    def _readable(self, page: int) -> bool:
        """Whether something answers in a page of physical memory, and not this device."""
        if page == self.bar_address(0):
            return False
        return page in INTERRUPT_RANGE or self.machine.claims(page, PAGE)
