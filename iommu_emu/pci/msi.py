"""MSI and MSI-X: vectors with masks and pending bits (pci 7)."""

from __future__ import annotations

from collections.abc import Callable

from iommu_emu.pci.config_space import ConfigSpace

MSI_ID = 0x05
MSIX_ID = 0x11
MSIX_ENABLE = 1 << 15  # of the message control register
MSI_VECTORS = 32
MSIX_VECTORS = 2048
_MSI_ENABLE = 1
_MSI_ONE_ENABLED = 1 << 4
_MSI_VECTORS_ENABLED = 7 * _MSI_ONE_ENABLED  # log2 of their number
_ENTRY = 16  # bytes of an MSI-X table entry
_MASKED = 1

__all__ = ["MSIX_ENABLE", "MSIX_VECTORS", "MSI_VECTORS", "Msi", "Msix"]


class Msi:
    """MSI with 64-bit addresses.

    Once MSI is enabled, Multiple Message Enable above Multiple Message Capable reads as that.

    Args:
        config: where the capability is added.
        vectors: how many the function asks for, a power of two in 1..32.
        send: sends one message: address and 32-bit data.
        maskable: whether there are per-vector masks and pending bits.

    Attributes:
        control: offset of the message control register.

    Raises:
        ValueError: if `vectors` is outside its range.
    """

    def __init__(
        self,
        config: ConfigSpace,
        vectors: int,
        send: Callable[[int, int], None],
        *,
        maskable: bool = True,
    ) -> None:
        if not 1 <= vectors <= MSI_VECTORS or vectors & (vectors - 1):
            raise ValueError(f"MSI vectors must be a power of two in 1..32, not {vectors}")
        self._config = config
        self._send = send
        self.vectors = vectors
        log2 = vectors.bit_length() - 1
        control = log2 << 1 | 1 << 7 | maskable << 8  # 64-bit addresses
        body = control.to_bytes(2, "little") + bytes(20 if maskable else 12)
        self._at = config.add_capability(MSI_ID, body)
        self._maskable = maskable
        self.control = self._at + 0x2
        config.allow(self.control, 2, _MSI_ENABLE | _MSI_VECTORS_ENABLED)
        config.allow(self._at + 0x4, 4, 0xFFFFFFFC)
        config.allow(self._at + 0x8, 4, 0xFFFFFFFF)
        config.allow(self._at + 0xC, 2, 0xFFFF)
        if maskable:
            config.allow(self._at + 0x10, 4, (1 << vectors) - 1)
        config.observe(self._at, 0x14, self._written)

    @property
    def enabled(self) -> bool:
        """Whether software has enabled MSI."""
        return bool(self._config.get(self.control, 2) & _MSI_ENABLE)

    @property
    def pending(self) -> int:
        """The pending bits, one a vector."""
        return self._config.get(self._at + 0x14, 4) if self._maskable else 0

    @property
    def _masked(self) -> int:
        return self._config.get(self._at + 0x10, 4) if self._maskable else 0

    @property
    def _count(self) -> int:
        """How many vectors software has enabled."""
        return 1 << (self._config.get(self.control, 2) & _MSI_VECTORS_ENABLED) // _MSI_ONE_ENABLED

    def notify(self, vector: int) -> bool:
        """Send vector `vector`, or make it pending if it is masked; False if MSI is disabled.

        With fewer vectors enabled than asked for, several share one: the number wraps.

        Raises:
            ValueError: if the function has no such vector.
        """
        if not 0 <= vector < self.vectors:
            raise ValueError(f"vector must be in 0..{self.vectors - 1}, not {vector}")
        if not self.enabled:
            return False
        vector %= self._count
        if self._masked >> vector & 1:
            self._config.set(self._at + 0x14, 4, self.pending | 1 << vector)
        else:
            self._emit(vector)
        return True

    def _emit(self, vector: int) -> None:
        address = self._config.get(self._at + 0x4, 8)
        data = self._config.get(self._at + 0xC, 2)
        self._send(address, data & ~(self._count - 1) | vector)

    def _written(self) -> None:
        """Keep the number of vectors legal, and send what was pending and is unmasked now, once."""
        if not self.enabled:
            return
        if self._count > self.vectors:
            control = self._config.get(self.control, 2) & ~_MSI_VECTORS_ENABLED
            capable = (self.vectors.bit_length() - 1) * _MSI_ONE_ENABLED
            self._config.set(self.control, 2, control | capable)
        ready = self.pending & ~self._masked
        if not ready:
            return
        self._config.set(self._at + 0x14, 4, self.pending & ~ready)
        for vector in range(self.vectors):
            if ready >> vector & 1:
                self._emit(vector)

    def reset(self) -> None:
        """Return the registers to their defaults."""
        control = self._config.get(self.control, 2)
        self._config.set(self.control, 2, control & ~(_MSI_ENABLE | _MSI_VECTORS_ENABLED))
        self._config.set(self._at + 0x4, 8, 0)
        self._config.set(self._at + 0xC, 2, 0)
        if self._maskable:
            self._config.set(self._at + 0x10, 8, 0)


class Msix:
    """MSI-X with its table and pending bits in a BAR.

    Args:
        config: where the capability is added.
        vectors: size of the table, 1..2048.
        send: sends one message: address and 32-bit data.
        bar: index of the BAR that holds table and pending bits.
        table: offset of the table in the BAR, a multiple of 8; the pending bits follow it.

    Attributes:
        control: offset of the message control register.

    Raises:
        ValueError: if `vectors` or `table` is outside its range.
    """

    def __init__(
        self,
        config: ConfigSpace,
        vectors: int,
        send: Callable[[int, int], None],
        bar: int,
        table: int = 0,
    ) -> None:
        if not 1 <= vectors <= MSIX_VECTORS:
            raise ValueError(f"MSI-X vectors must be in 1..{MSIX_VECTORS}, not {vectors}")
        if table % 8 or table < 0:
            raise ValueError(f"MSI-X table must be at a multiple of 8, not {table:#x}")
        self._config = config
        self._send = send
        self.vectors = vectors
        self.bar = bar
        self.table = table
        self.pending_bits = table + _ENTRY * vectors
        self.end = self.pending_bits + (vectors + 63) // 64 * 8
        self._at = config.add_capability(MSIX_ID, bytes(10))
        self.control = self._at + 2
        config.set(self.control, 2, vectors - 1)
        config.set(self._at + 4, 4, table | bar)
        config.set(self._at + 8, 4, self.pending_bits | bar)
        config.allow(self.control, 2, 0xC000)
        config.observe(self.control, 2, self._deliver_pending)
        self._entries = bytearray()
        self.pending = 0
        self.reset()

    @property
    def enabled(self) -> bool:
        """Whether software has enabled MSI-X."""
        return bool(self._config.get(self.control, 2) & MSIX_ENABLE)

    @property
    def _function_masked(self) -> bool:
        return bool(self._config.get(self.control, 2) & 0x4000)

    def covers(self, bar: int, offset: int) -> bool:
        """Whether an offset of a BAR belongs to the table or the pending bits."""
        return bar == self.bar and self.table <= offset < self.end

    def read(self, offset: int, size: int) -> int:
        """Read table or pending bits as software does: 4 or 8 aligned bytes; else all ones."""
        if size not in (4, 8) or offset % size or offset + size > self.end:
            return (1 << 8 * size) - 1
        if offset >= self.pending_bits:
            return self.pending >> 8 * (offset - self.pending_bits) & ((1 << 8 * size) - 1)
        at = offset - self.table
        return int.from_bytes(self._entries[at : at + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the table as software does: 4 or 8 aligned bytes; else dropped."""
        if size not in (4, 8) or offset % size or offset + size > self.pending_bits:
            return
        at = offset - self.table
        for word in range(at, at + size, 4):
            mask = (0xFFFFFFFC, 0xFFFFFFFF, 0xFFFFFFFF, _MASKED)[word // 4 % 4]
            self._entries[word : word + 4] = (value & mask).to_bytes(4, "little")
            value >>= 32
        self._deliver_pending()

    def notify(self, vector: int) -> bool:
        """Send vector `vector`, or make it pending if it is masked; False if MSI-X is disabled.

        Raises:
            ValueError: if the function has no such vector.
        """
        if not 0 <= vector < self.vectors:
            raise ValueError(f"vector must be in 0..{self.vectors - 1}, not {vector}")
        if not self.enabled:
            return False
        if self._masked(vector):
            self.pending |= 1 << vector
        else:
            self._emit(vector)
        return True

    def _masked(self, vector: int) -> bool:
        return self._function_masked or bool(self._entries[_ENTRY * vector + 12] & _MASKED)

    def _emit(self, vector: int) -> None:
        entry = self._entries[_ENTRY * vector : _ENTRY * (vector + 1)]
        self._send(int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:12], "little"))

    def _deliver_pending(self) -> None:
        """Send what was pending and is unmasked now, once."""
        if not self.pending or not self.enabled or self._function_masked:
            return
        for vector in range(self.vectors):
            if self.pending >> vector & 1 and not self._masked(vector):
                self.pending &= ~(1 << vector)
                self._emit(vector)

    def reset(self) -> None:
        """Return registers and table to their defaults: every vector masked."""
        self._config.set(self.control, 2, self._config.get(self.control, 2) & 0x07FF)
        self._entries = bytearray((bytes(12) + b"\1\0\0\0") * self.vectors)
        self.pending = 0
