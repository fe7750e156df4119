"""What the linter reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing in a table that is wrong or worth knowing.

    Attributes:
        severity: `error`: software that believes the table goes wrong. `warning`: against the
            specification, but software copes. `note`: allowed, yet unusual enough to matter.
        code: A short name that stays the same from release to release.
        offset: Byte offset from the start of the table.
        reason: One sentence for people.
        section: Where the specification says so.
    """

    severity: Severity
    code: str
    offset: int
    reason: str
    section: str
