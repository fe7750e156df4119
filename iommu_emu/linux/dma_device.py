"""A device as the DMA API sees it, and the domain that its group is in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iommu_emu.core import AddressType, StateError, Verdict
from iommu_emu.direction import Direction
from iommu_emu.domain import Domain
from iommu_emu.driver import Driver
from iommu_emu.linux.bounce import BouncedBuffer
from iommu_emu.linux.domain_type import DomainType
from iommu_emu.linux.flush_queue import FlushQueue
from iommu_emu.linux.iommu_group import IommuGroup, device_name
from iommu_emu.linux.iova import DmaLimit, IovaDomain
from iommu_emu.pci.function import Function

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["CoherentBuffer", "DmaDevice", "DmaDomain", "Mapping", "is_untrusted", "stays_below"]

MAX_SEGMENT = 64 << 10  # bytes of a scatter list's entry, unless the driver says otherwise
SEGMENT_BOUNDARY = 0xFFFF_FFFF  # that entries of PCI devices do not cross


@dataclass(frozen=True, slots=True)
class CoherentBuffer:
    """Memory that CPU and device use at the same time; made by `DmaApi.alloc_coherent`.

    Attributes:
        physical: where the CPU sees it.
        iova: where the device sees it.
        size: bytes.
    """

    physical: int
    iova: int
    size: int


@dataclass(eq=False, slots=True)
class Mapping:
    """What one call mapped.

    Attributes:
        device: for whom.
        iova: the address that the device was given.
        size: bytes that were asked for.
        direction: which way the data goes.
        first: first input address that is mapped, a granule's.
        mapped: bytes that are mapped, whole granules.
        physical: address of the buffer, or of the first one of a scatter list.
        in_place: what of the buffers the device reaches itself: address and bytes of each piece.
        domain: in which domain.
        bounced: what of it is in bounce buffers; None: nothing.
        slot: address of the bounce buffer, where there is no translation; None: none.
        coherent: whether it is coherent memory.
        entries: what the device sees of a scatter list, address and bytes of each; empty: it is
            none.
    """

    device: DmaDevice
    iova: int
    size: int
    direction: Direction
    first: int
    mapped: int
    physical: int
    in_place: tuple[tuple[int, int], ...] = ()
    bounced: BouncedBuffer | None = None
    slot: int | None = None
    coherent: bool = False
    entries: tuple[tuple[int, int], ...] = ()
    domain: DmaDomain = field(init=False)

    def __post_init__(self) -> None:
        self.domain = self.device.domain


@dataclass(eq=False)
class DmaDomain:
    """A domain of the kernel's, or what stands for none.

    Attributes:
        type: what it does.
        table: the domain with its page table; None: IDENTITY or BLOCKED.
        iovas: its input addresses; None: it is not the DMA API's.
        queue: where unmaps wait for a flush; None: they do not wait.
        mappings: what is mapped, by the address that the device was given.
        used: physical address that an input address stood for last, by first granule.
    """

    type: DomainType
    table: Domain | None = None
    iovas: IovaDomain | None = None
    queue: FlushQueue | None = None
    mappings: dict[int, Mapping] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict, repr=False)

    @property
    def number(self) -> int:
        """Domain ID; 0 without a page table."""
        return 0 if self.table is None else self.table.id


class DmaDevice:
    """A function with what Linux knows of it.

    Args:
        function: the function, attached.
        machine: its machine.
        group: its IOMMU group; None: no IOMMU is before it.
        driver: of the IOMMU before it; None: there is none.
        domain: where it is.
        limit: which addresses it can use.
        untrusted: whether it is below an external-facing port (os 4.5).

    Attributes:
        function: as given.
        domain: where it is now.
        limit: as given.
        untrusted: whether its buffers are bounced, and its domain is strict.
        requesters: requester IDs that stand for it.
        ats: whether its device-TLB is in use.
        opt_in: whether its driver asks for deferred unmapping itself.
        max_segment: bytes of an entry of a scatter list at most.
        segment_boundary: that no such entry crosses: a power of two less one.
        min_align_mask: low address bits that it needs kept.
    """

    def __init__(
        self,
        function: Function,
        machine: Machine,
        group: IommuGroup | None,
        driver: Driver[Any] | None,
        domain: DmaDomain,
        limit: DmaLimit,
        untrusted: bool,
    ) -> None:
        self.function = function
        self.domain = domain
        self.limit = limit
        self.untrusted = untrusted
        self.requesters = tuple(machine.fabric.aliases(function))
        self.ats = False
        self.opt_in = False
        self.max_segment = MAX_SEGMENT
        self.segment_boundary = SEGMENT_BOUNDARY
        self.min_align_mask = 0
        self._name = device_name(function)
        self._group = group
        self._driver = driver

    def __repr__(self) -> str:
        return f"<DmaDevice {self._name} {self.function.name}, {self.domain.type.value}>"

    @property
    def name(self) -> str:
        """Its address as Linux writes it, also when it is gone."""
        return self._name

    @property
    def translated(self) -> bool:
        """Whether an IOMMU is before it, and in use."""
        return self._driver is not None

    @property
    def group(self) -> IommuGroup:
        """Its IOMMU group.

        Raises:
            StateError: if there is no IOMMU before it.
        """
        if self._group is None:
            raise StateError(f"{self._name} has no group: no IOMMU in use is before it")
        return self._group

    @property
    def driver(self) -> Driver[Any]:
        """Driver of the IOMMU before it.

        Raises:
            StateError: if there is none.
        """
        if self._driver is None:
            raise StateError(f"{self._name}: no IOMMU in use is before it")
        return self._driver


def stays_below(function: Function, address: int, size: int) -> bool:
    """Return whether a function's requests for a range go to a peer, not up to the IOMMU."""
    return any(
        rule.verdict is Verdict.PEER
        and AddressType.UNTRANSLATED in rule.address_types
        and rule.first <= address <= address + size - 1 <= rule.last
        for rule in function.dma.rules
    )


def is_untrusted(machine: Machine, function: Function) -> bool:
    """Return whether a function is below an external-facing port (os 4.5)."""
    return any(bridge.external_facing for bridge in machine.fabric.bridges_above(function))
