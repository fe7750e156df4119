"""What a policy is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommu_emu.linux.bounce import BounceRule
from iommu_emu.linux.flush_queue import PER_CPU, QueueKind
from iommu_emu.linux.reserved_regions import KernelAge
from iommu_emu.xen.advisory import Advisory
from iommu_emu.xen.parameter import Release

if TYPE_CHECKING:
    from iommu_emu.linux.dma_api import DmaApi

__all__ = ["LinuxPolicy", "Policy", "XenPolicy"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A named policy.

    Attributes:
        name: as on the command line, for example "linux-lazy".
        summary: what it does, in one sentence.
        source: where it comes from: a kernel's release, a mail, a paper.
        objection: what was said against it; "" if nothing was.
    """

    name: str
    summary: str
    source: str
    objection: str = ""


@dataclass(frozen=True, kw_only=True)
class LinuxPolicy(Policy):
    """A policy of a Linux kernel.

    Attributes:
        parameters: its command line, for example "iommu.strict=0".
        queue: kind of flush queue of lazy domains.
        bounce: bounce rule of devices that are not trusted.
        external: whether the device of a scenario sits below an external-facing port, and so is
            not trusted.
        opt_in: whether the drivers of a scenario ask for deferred unmapping themselves.
        attribute: whether root says of the scenario's device that it may be lazy.
        age: what the kernel does about reserved regions.
        notifier: whether VFIO has its old rule over groups (before Linux 5.19).
        map_reserved: whether a domain of user space gets the reserved regions of its devices.
        dma_api: class of the DMA API; None: Linux's own.
    """

    parameters: str = ""
    queue: QueueKind = PER_CPU
    bounce: BounceRule = BounceRule.WHOLE
    external: bool = False
    opt_in: bool = False
    attribute: bool = False
    age: KernelAge = KernelAge.LINUX_7_2
    notifier: bool = False
    map_reserved: bool = False
    dma_api: type[DmaApi] | None = None


@dataclass(frozen=True, kw_only=True)
class XenPolicy(Policy):
    """A policy of a Xen hypervisor.

    Attributes:
        parameters: its command line, for example "iommu=quarantine=scratch-page".
        quarantined: names of devices that the toolstack assigns to quarantine itself.
        release: which Xen it is.
        unfixed: advisories that it has no fixes for.
    """

    parameters: str = ""
    quarantined: tuple[str, ...] = field(default=())
    release: Release = Release.CURRENT
    unfixed: frozenset[Advisory] = frozenset()
