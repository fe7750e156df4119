"""The device that the tests serve."""

from iommu_emu.devices import Bar, Device


class Sample(Device):
    """Keeps what is written to it, and has every kind of interrupt."""

    vendor_id, device_id = 0x1234, 0x5678
    bar_layout = (Bar(0, 8192), Bar(2, 65536, wide=True))
    msi_vectors = 4
    msix_vectors = 8
    msix_bar = 2
    interrupt_pin = 1

    def __init__(self):
        super().__init__("sample")
        self.memory = {0: bytearray(8192), 2: bytearray(65536)}
        self.accesses = []
        self.resets = 0

    def bar_read(self, bar, offset, size):
        self.accesses.append(("read", bar, offset, size))
        return int.from_bytes(self.memory[bar][offset : offset + size], "little")

    def bar_write(self, bar, offset, size, value):
        self.accesses.append(("write", bar, offset, size))
        self.memory[bar][offset : offset + size] = value.to_bytes(size, "little")

    def on_reset(self):
        self.resets += 1
