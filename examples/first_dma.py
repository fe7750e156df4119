"""A device does DMA through VT-d: first where it may, then where it may not.

Run it with `python examples/first_dma.py`.
"""

from iommu_emu import Device, Machine
from iommu_emu.vtd.driver import VtdDriver

machine = Machine.from_platform("q35-vtd")
device = machine.attach(Device("nic"), machine.places["NVMe"])

driver = VtdDriver(machine, machine.unit_of(device), frames=range(0x10_0000, 0x20_0000))
driver.start()
buffer = driver.create_domain()
buffer.map(iova=0x4000, physical=0x50_0000, size=4096)
driver.attach(buffer, device.dma.requester)

machine.memory.write(0x50_0000, b"hello")
print("inside: ", device.dma.read(0x4000, 5).data)
print("outside:", device.dma.read(0x5000, 5))
for fault in driver.faults():
    print("record: ", fault)
