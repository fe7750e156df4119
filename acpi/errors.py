"""The one exception of this package."""

from __future__ import annotations


class AcpiError(ValueError):
    """A table, or the description of one, that cannot be understood.

    Attributes:
        reason: What is wrong, in one line.
        offset: Byte offset from the start of the table; None if no byte is to blame, as for a
            mistake in a TOML description.
    """

    def __init__(self, reason: str, offset: int | None = None) -> None:
        super().__init__(reason if offset is None else f"offset {offset:#x}: {reason}")
        self.reason = reason
        self.offset = offset
