"""I/O ports: PCI configuration, the reset register, and what libqos asks fw_cfg for."""

from __future__ import annotations

from collections.abc import Callable

from iommu_emu.machine import Machine

CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC
RESET_CONTROL = 0xCF9
FW_CFG_SELECTOR = 0x510
FW_CFG_DATA = 0x511
FW_CFG_SIGNATURE = 0x00
FW_CFG_RAM_SIZE = 0x03
_RESET_NOW = 0x04
_RESET_WRITABLE = 0x0A

__all__ = ["PortIo"]


class PortIo:
    """The ports of one machine; where nothing answers, reads return all ones.

    Args:
        machine: whose configuration space is reached.
        memory: bytes of RAM, as fw_cfg tells firmware.

    Attributes:
        on_reset: called when software resets the machine through the reset control register.
    """

    def __init__(self, machine: Machine, memory: int) -> None:
        self._machine = machine
        self.on_reset: Callable[[], None] = lambda: None
        self._files = {FW_CFG_SIGNATURE: b"QEMU", FW_CFG_RAM_SIZE: memory.to_bytes(8, "little")}
        self.reset()

    def reset(self) -> None:
        """Forget the selected configuration address and fw_cfg file, and the kind of reset."""
        self._address = 0
        self._reset_control = 0
        self._file = b""

    def read(self, port: int, size: int) -> int:
        """Read 1, 2 or 4 bytes."""
        if port == CONFIG_ADDRESS and size == 4:
            return self._address
        if port == RESET_CONTROL and size == 1:
            return self._reset_control
        where = self._config(port, size)
        if where is not None:
            return self._machine.config_read(*where, size)
        if port == FW_CFG_DATA and size == 1:
            value, self._file = self._file[:1], self._file[1:]
            return int.from_bytes(value, "little")  # past the end: 0
        return (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes."""
        where = self._config(port, size)
        if port == CONFIG_ADDRESS and size == 4:
            self._address = value
        elif port == RESET_CONTROL and size == 1:
            self._reset_control = value & _RESET_WRITABLE
            if value & _RESET_NOW:
                self.on_reset()
        elif where is not None:
            self._machine.config_write(*where, size, value)
        elif port == FW_CFG_SELECTOR and size == 2:
            self._file = self._files.get(value, b"")

    def _config(self, port: int, size: int) -> tuple[int, int] | None:
        """Return requester ID and offset that a data port reaches; None: no configuration."""
        byte = port - CONFIG_DATA
        if not 0 <= byte <= 4 - size or not self._address >> 31:
            return None
        # libqos relies on QEMU's taking the low bits of either the address or the port.
        return self._address >> 8 & 0xFFFF, self._address & 0xFF | byte
