"""Error codes of the core as exceptions, and checks of what users pass."""

from __future__ import annotations

from iommu_emu._core import lib

U16 = (1 << 16) - 1
U32 = (1 << 32) - 1
U64 = (1 << 64) - 1
MAX_TRANSFER = 16 << 20  # bytes of one DMA transfer
MAX_PASID = (1 << 20) - 1


class OverlapError(ValueError):
    """A memory region or register window overlaps another one."""


class NotRamError(ValueError):
    """A range of physical memory is not wholly RAM."""


class UnsealedError(ValueError):
    """A shared region's file can still shrink."""


class FullError(RuntimeError):
    """A fixed pool of the core is exhausted."""


class StateError(RuntimeError):
    """The operation is not possible in the present state."""


_ERRORS: dict[int, tuple[type[Exception], str]] = {
    lib.IEMU_E_ARGUMENT: (ValueError, "is outside its documented range"),
    lib.IEMU_E_NO_MEMORY: (MemoryError, "needs more memory than the host has"),
    lib.IEMU_E_OVERLAP: (OverlapError, "overlaps another region or register window"),
    lib.IEMU_E_NOT_RAM: (NotRamError, "is not wholly RAM"),
    lib.IEMU_E_FULL: (FullError, "does not fit in its fixed pool"),
    lib.IEMU_E_STATE: (StateError, "is not possible in the present state"),
    lib.IEMU_E_UNSEALED: (UnsealedError, "must be a file sealed against shrinking (F_SEAL_SHRINK)"),
}


def check(code: int, what: str) -> int:
    """Return `code` if it is no error, else raise what it stands for.

    Args:
        code: what a function of the core returned.
        what: the argument or operation, with its value and limit, as the message names it.
    """
    if code >= 0:
        return code
    exception, reason = _ERRORS[code]
    raise exception(f"{what} {reason}")


def require_range(name: str, value: int, last: int, first: int = 0) -> None:
    """Raise a ValueError that names the argument unless `first <= value <= last`."""
    if not first <= value <= last:
        raise ValueError(f"{name} must be in {first:#x}..{last:#x}, not {value:#x}")


def range_text(address: int, length: int) -> str:
    """Return a range of addresses as messages name it."""
    return f"range {address:#x}+{length:#x}"
