"""A bridge with a Standard Hot-Plug Controller: a bridge that its driver runs through MMIO."""

from __future__ import annotations

from enum import IntEnum

from iommu_emu.pci.capabilities import Acs, PortType
from iommu_emu.pci.function import Bar
from iommu_emu.pci.topology import Bridge

# Working register set (PCI Standard Hot-Plug Controller 1.0); little endian.
SLOT_CONFIGURATION, COMMAND, COMMAND_STATUS, INTERRUPT_ENABLE, SLOTS = 0x0C, 0x14, 0x16, 0x20, 0x24
_SHPC_ID = 0x0C
_LAST_SLOT_OPERATION = 0x3F
_STATE, _POWER_LED, _ATTENTION_LED = 0x03, 0x0C, 0x30
_INVALID_COMMAND = 1 << 2
_FIRST_STATE = 0x34  # attention light off, power light on

__all__ = ["COMMAND", "COMMAND_STATUS", "SLOTS", "ShpcBridge", "SlotState", "slot_command"]


class SlotState(IntEnum):
    """State of a slot, as the low bits of its status and of a command say it."""

    POWERED = 1  # without clock and bus
    ENABLED = 2
    DISABLED = 3


def slot_command(slot: int, state: SlotState) -> bytes:
    """Return the command that brings a slot (1 or more) to a state, as it is written."""
    light = _POWER_LED if state is SlotState.DISABLED else 0x04
    return (slot << 8 | light | state).to_bytes(2, "little")


class ShpcBridge(Bridge):
    """A bridge whose slots are switched through registers in its BAR 0.

    Whoever writes the registers switches the slots, and a write that comes peer to peer looks no
    different from one of the driver's. Commands complete at once.

    | offset     | register                                                              |
    |-----------:|-----------------------------------------------------------------------|
    |      `0Ch` | slot configuration: number of slots                                   |
    |      `14h` | command, 16 bits: operation (7:0), slot (12:8); slot operations only  |
    |      `16h` | command status, 16 bits: 2 invalid command                            |
    |      `20h` | interrupt and system-error enables                                    |
    | `24h + 4n` | slot n + 1: status (15:0), events (23:16, write 1 to clear), masks    |

    Args:
        name: for people.
        kind: PCI Express type; None: a conventional bridge.
        slots: how many, 1..31; each is enabled.
        acs: access control services of the port.

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(
        self,
        name: str = "bridge with slots",
        kind: PortType | None = PortType.PCIE_TO_PCI,
        *,
        slots: int = 1,
        acs: Acs = Acs.NONE,
    ) -> None:
        if not 1 <= slots <= 31:
            raise ValueError(f"slots must be in 1..31, not {slots}")
        super().__init__(name, kind, acs=acs, bars=(Bar(0, 4096),))
        self.config.add_capability(_SHPC_ID, bytes(6))
        self._slots = slots
        self._data = bytearray(SLOTS + 4 * slots)
        self.on_reset()

    @property
    def registers(self) -> bytes:
        """All registers as they are."""
        return bytes(self._data)

    def slot_state(self, slot: int) -> SlotState:
        """Return the state of a slot, 1 or more.

        Raises:
            ValueError: if there is no such slot.
        """
        if not 1 <= slot <= self._slots:
            raise ValueError(f"slot must be in 1..{self._slots}, not {slot}")
        return SlotState(self._data[_status(slot)] & _STATE)

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Read registers; 0 beyond them."""
        return int.from_bytes(self._data[offset : offset + size], "little")

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write registers; the command is carried out at once."""
        for at, byte in enumerate(value.to_bytes(size, "little"), offset):
            if at in (COMMAND, COMMAND + 1) or INTERRUPT_ENABLE <= at < SLOTS:
                self._data[at] = byte
            elif SLOTS <= at < len(self._data) and at % 4 == 2:
                self._data[at] &= ~byte
            elif SLOTS <= at < len(self._data) and at % 4 == 3:
                self._data[at] = byte
        if offset < COMMAND + 2 and offset + size > COMMAND:
            self._execute()

    def on_reset(self) -> None:
        """Enable all slots, and lose the bus numbers."""
        super().on_reset()
        self._data[:] = bytes(len(self._data))
        self._data[SLOT_CONFIGURATION] = self._slots
        for slot in range(1, self._slots + 1):
            self._data[_status(slot)] = _FIRST_STATE | SlotState.ENABLED

    def _execute(self) -> None:
        operation, slot = self._data[COMMAND], self._data[COMMAND + 1] & 0x1F
        valid = operation <= _LAST_SLOT_OPERATION and 1 <= slot <= self._slots
        self._data[COMMAND_STATUS] = 0 if valid else _INVALID_COMMAND
        if not valid:
            return
        for field in (_STATE, _POWER_LED, _ATTENTION_LED):
            if operation & field:  # 0 leaves it as it is
                at = _status(slot)
                self._data[at] = self._data[at] & ~field | operation & field


def _status(slot: int) -> int:
    return SLOTS + 4 * (slot - 1)
