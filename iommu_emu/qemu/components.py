"""What the cache can hold: one line a component, and where Debian keeps it."""

from __future__ import annotations

from dataclasses import dataclass

KERNEL_PACKAGES = r"linux-(image|binary|modules|base)-[0-9].*"


@dataclass(frozen=True)
class Component:
    """One folder of the cache.

    Attributes:
        name: The folder, and the word on the command line.
        title: What it is, for people.
        suites: Debian suites that its packages come from; the last one is preferred.
        package: The package that pulls in the others.
        kept: Regular expression of package names; the rest of the dependencies (maintainer
            scripts' tools, initramfs generators) is not downloaded.
        download_mib: About what is downloaded, in MiB, for ``--list``.
        dropped: Glob patterns of what nobody needs of it once it is unpacked.
    """

    name: str
    title: str
    suites: tuple[str, ...]
    package: str
    kept: str
    download_mib: int
    dropped: tuple[str, ...] = ()

    @property
    def is_kernel(self) -> bool:
        """Whether it is a Linux kernel with its modules."""
        return self.kept == KERNEL_PACKAGES


# Debian's cloud flavour has what a guest of ours needs (INTEL_IOMMU, NVMe and pciehp built in,
# vfio-pci as a module) in a third of the generic flavour's size.
COMPONENTS = {
    component.name: component
    for component in (
        Component(
            "qemu",
            "QEMU, its libraries and firmware",
            ("trixie", "trixie-backports"),
            "qemu-system-x86",
            r"(lib(?!pam|semanage|sepol).*|qemu-system-.*|seabios|ipxe-qemu)",
            33,
            (
                "etc",
                "var",
                "usr/bin/*-i386",
                "usr/bin/*-microvm",
                "usr/bin/qemu-*-helper",
                "usr/lib/qemu",
                "usr/lib/x86_64-linux-gnu/gconv",
            ),
        ),
        Component(
            "busybox",
            "a shell for initial RAM disks",
            ("trixie",),
            "busybox-static",
            "busybox-static",
            1,
        ),
        Component(
            "bookworm",
            "Linux 6.1",
            ("bookworm",),
            "linux-image-cloud-amd64",
            KERNEL_PACKAGES,
            26,
        ),
        Component(
            "trixie",
            "Linux 6.12",
            ("trixie",),
            "linux-image-cloud-amd64",
            KERNEL_PACKAGES,
            33,
        ),
        Component(
            "trixie-backports",
            "Linux 7.x",
            ("trixie", "trixie-backports"),
            "linux-image-cloud-amd64",
            KERNEL_PACKAGES,
            49,
        ),
    )
}

KERNELS = tuple(name for name, component in COMPONENTS.items() if component.is_kernel)
