"""Domains of the small software drivers: a page table, with what its users owe the caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from iommu_emu.core import Access
from iommu_emu.page_table import PageTable

if TYPE_CHECKING:
    from iommu_emu.driver import Driver

_PERMISSIONS = {"r": Access.READ, "w": Access.WRITE, "rw": Access.READ | Access.WRITE}

__all__ = ["Domain"]


class Domain:
    """An address space that devices are attached to; made by `Driver.create_domain`.

    Attributes:
        id: domain ID.
        table: its page table.
    """

    def __init__(self, driver: Driver[Any], domain_id: int, table: PageTable) -> None:
        self._driver = driver
        self._unflushed: list[int] = []  # frames of tables that caches may still point to
        self.id = domain_id
        self.table = table

    def __repr__(self) -> str:
        return f"<Domain {self.id}, {self.table.levels} levels at {self.table.root:#x}>"

    def map(
        self,
        iova: int,
        physical: int,
        size: int,
        permissions: str = "rw",
        page_size: int | Sequence[int] | None = None,
        *,
        invalidate: bool = True,
    ) -> None:
        """Map a range of input addresses.

        Args:
            iova: first input address.
            physical: physical address that it goes to.
            size: bytes.
            permissions: "r", "w" or "rw".
            page_size: the size of page to use, or several to pick from, in bytes; None: the
                largest that fit, of what the unit supports.
            invalidate: invalidate what a unit with caching mode (NpCache) may hold.

        Raises:
            ValueError: if a number is not aligned or out of range, or part of it is mapped;
                nothing is mapped then.
            MemoryError: if the driver has no frames left; nothing is mapped then.
        """
        sizes = [page_size] if isinstance(page_size, int) else page_size
        self.table.map(iova, physical, size, _parse_permissions(permissions), sizes)
        if invalidate:
            self._driver.mapped(self, iova, size)

    def unmap(self, iova: int, size: int, *, invalidate: bool = True) -> None:
        """Unmap a range of input addresses.

        Args:
            iova: first input address.
            size: bytes.
            invalidate: False leaves what the caches hold; `flush` makes up for it.

        Raises:
            ValueError: if part of it is not mapped, or a page would be split; nothing is
                unmapped then.
        """
        freed = self.table.unmap(iova, size)
        self._unflushed += freed
        if invalidate:
            # Tables went away: paging-structure caches may point to them (VT-d IH=0, AMD PDE=1).
            self._driver.invalidate_range(self, iova, size, keep_tables=not self._unflushed)
            self._release()

    def flush(self) -> None:
        """Invalidate everything that is cached of this domain."""
        self._driver.invalidate_domain(self)
        self._release()

    def begin_flush(
        self, complete: Callable[[], None], failed: Callable[[Exception], None] | None = None
    ) -> None:
        """Begin what `flush` does, and return; for timers, which cannot wait.

        Args:
            complete: called once it is complete; at once if the unit is that fast.
            failed: called instead with the error that `flush` would have raised; None: the error
                is raised where virtual time passes.
        """
        frames, self._unflushed = self._unflushed, []

        def done() -> None:
            self._driver.frames.release(frames)
            complete()

        self._driver.start_domain_invalidation(self)
        self._driver.when_complete(done, failed)

    def _release(self) -> None:
        self._driver.frames.release(self._unflushed)
        self._unflushed.clear()


def _parse_permissions(text: str) -> Access:
    """Return the permissions that "r", "w" or "rw" stands for.

    Raises:
        ValueError: if it is another string.
    """
    try:
        return _PERMISSIONS[text]
    except KeyError:
        raise ValueError(f'permissions must be "r", "w" or "rw", not {text!r}') from None
