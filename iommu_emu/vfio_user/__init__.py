"""Device models and IOMMU register pages, served to any vfio-user client over UNIX sockets.

    machine = Machine.from_acpi(table, memory=(), clock_source=monotonic_source())
    with Server(machine) as server:
        nvme = server.serve(Nvme(), "nvme.sock", "01:00.0")
        page = server.serve_unit(machine.units[0], "unit.sock")
        while True:
            server.run_once()

QEMU connects with `-device` and `Endpoint.qemu_device()`; guest memory must be
`-object memory-backend-memfd,share=on`.
"""

from iommu_emu.vfio_user.endpoint import Endpoint
from iommu_emu.vfio_user.server import Event, Server
from iommu_emu.vfio_user.unit_page import UnitPage

__all__ = ["Endpoint", "Event", "Server", "UnitPage"]
