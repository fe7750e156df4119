"""Cache geometries of an IOMMU: sets, ways and replacement, with named presets.

Real parts do not publish their geometry; each preset says where its numbers come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from iommu_emu.core import CACHES, CacheId, Replacement

MAX_SETS = 65536
MAX_WAYS = 1024
MAX_LINES = 1 << 20

__all__ = ["PRESETS", "CacheGeometry", "Geometry", "preset"]


@dataclass(frozen=True)
class CacheGeometry:
    """Shape of one set-associative cache.

    Attributes:
        sets: number of sets, a power of two in 1..65536.
        ways: lines a set, 1..1024; sets * ways is at most 2**20.
        replacement: which line of a full set makes room.
        seed: start of the random replacement; the same seed evicts the same lines.

    Raises:
        ValueError: if a number is outside its range.
    """

    sets: int
    ways: int
    replacement: Replacement = Replacement.LRU
    seed: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.sets <= MAX_SETS or self.sets & (self.sets - 1):
            raise ValueError(f"sets must be a power of two in 1..{MAX_SETS}, not {self.sets}")
        if not 1 <= self.ways <= MAX_WAYS:
            raise ValueError(f"ways must be in 1..{MAX_WAYS}, not {self.ways}")
        if self.lines > MAX_LINES:
            raise ValueError(f"sets * ways must be at most {MAX_LINES}, not {self.lines}")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed must be in 0..2**32-1, not {self.seed}")

    @property
    def lines(self) -> int:
        """Number of entries that the cache holds."""
        return self.sets * self.ways

    def parameters(self) -> dict[str, int]:
        """Return the values of `struct iemu_geometry`."""
        return {
            "sets": self.sets,
            "ways": self.ways,
            "replacement": int(self.replacement),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Geometry:
    """Shape of every cache of one unit.

    Attributes:
        name: name of the preset, or a name of your own.
        description: one line for people.
        provenance: where the numbers come from.
        iotlb: translations of pages.
        context: VT-d context entries, AMD-Vi device table entries.
        paging: paging-structure entries of the second stage or host tables.
        interrupt: interrupt remapping table entries.
    """

    name: str
    description: str
    provenance: str
    iotlb: CacheGeometry
    context: CacheGeometry
    paging: CacheGeometry
    interrupt: CacheGeometry

    def parameters(self) -> list[dict[str, int]]:
        """Return the values of `geometry` in `struct iemu_unit_config`, in cache-ID order."""
        shapes: dict[IntEnum, CacheGeometry] = {
            CacheId.IOTLB: self.iotlb,
            CacheId.CONTEXT: self.context,
            CacheId.PAGING: self.paging,
            CacheId.INTERRUPT: self.interrupt,
        }
        return [shapes[CacheId(cache)].parameters() for cache in range(CACHES)]


PRESETS: dict[str, Geometry] = {
    geometry.name: geometry
    for geometry in (
        Geometry(
            "default",
            "4096-entry IOTLB, large enough that evictions are rare",
            "this project's choice: 4 ways x 1024 sets, the shape of the benchmark floors",
            iotlb=CacheGeometry(1024, 4),
            context=CacheGeometry(64, 4),
            paging=CacheGeometry(256, 4),
            interrupt=CacheGeometry(64, 4),
        ),
        Geometry(
            "fully-associative-64",
            "64 translations, any page in any line",
            "pcie-bench measured about 64 IOTLB entries on Xeon; VirtualBox's AMD model has 64, "
            "with 16 device-table and 32 interrupt entries",
            iotlb=CacheGeometry(1, 64),
            context=CacheGeometry(1, 16),
            paging=CacheGeometry(1, 16),
            interrupt=CacheGeometry(1, 32),
        ),
        Geometry(
            "qemu-1024",
            "1024 translations, any page in any line",
            "size of the IOTLB in QEMU's intel-iommu; QEMU drops all when full, here the least "
            "recently used line goes",
            iotlb=CacheGeometry(1, 1024),
            context=CacheGeometry(64, 4),
            paging=CacheGeometry(1, 1),
            interrupt=CacheGeometry(64, 4),
        ),
        Geometry(
            "gem5-smmuv3",
            "2048 translations in 4 ways, round robin",
            "defaults of gem5's SMMUv3: TLB 2048 entries x 4 ways, configuration cache 64 x 4, "
            "stage-2 walk caches 4 + 28 + 92 + 4 entries",
            iotlb=CacheGeometry(512, 4, Replacement.FIFO),
            context=CacheGeometry(16, 4, Replacement.FIFO),
            paging=CacheGeometry(32, 4, Replacement.FIFO),
            interrupt=CacheGeometry(16, 4, Replacement.FIFO),
        ),
        Geometry(
            "tiny-2",
            "two lines in every cache, so that tests see evictions",
            "cache sizes of the RISC-V IOMMU reference model as shipped",
            iotlb=CacheGeometry(1, 2),
            context=CacheGeometry(1, 2),
            paging=CacheGeometry(1, 2),
            interrupt=CacheGeometry(1, 2),
        ),
    )
}


def preset(name: str) -> Geometry:
    """Return the geometry preset called `name`.

    Raises:
        ValueError: if there is none; the message lists the names.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(f"geometry must be one of {', '.join(PRESETS)}, not {name!r}") from None
