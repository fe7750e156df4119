"""Types of domains, and which one a group gets when it comes (os 4.6)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from iommu_emu.refused import RefusedError

__all__ = ["QUIRKS", "TYPE_WORDS", "DomainType", "combined_type", "parse_type"]


class DomainType(Enum):
    """What a domain does with its devices' requests; `value` is the word in sysfs."""

    IDENTITY = "identity"  # lets them through untranslated
    STRICT = "DMA"  # translates; an unmap returns when it is invalidated
    LAZY = "DMA-FQ"  # translates; invalidation waits in a flush queue
    BLOCKED = "blocked"  # refuses them
    UNMANAGED = "unmanaged"  # its owner maps what he likes, strictly (VFIO)

    @property
    def words(self) -> str:
        """Name in the kernel's log."""
        return _LOGGED.get(self, "Translated")


_LOGGED = {
    DomainType.IDENTITY: "Passthrough",
    DomainType.BLOCKED: "Blocked",
    DomainType.UNMANAGED: "Unmanaged",
}

TYPE_WORDS: dict[str, DomainType | None] = {
    "identity": DomainType.IDENTITY,
    "DMA": DomainType.STRICT,
    "DMA-FQ": DomainType.LAZY,
    "auto": None,
}

# Devices for which VT-d's driver insists on a type, by vendor and device ID: an audio controller
# that does not get along with translation (os 4.6).
QUIRKS = {(0x8086, 0x3A3E): DomainType.IDENTITY}


def parse_type(text: str) -> DomainType | None:
    """Return the type that a write to a group's `type` file asks for; None: the default one.

    Raises:
        RefusedError: EINVAL, if it is no type.
    """
    word = text.strip()
    if word not in TYPE_WORDS:
        raise RefusedError("EINVAL", f"type must be one of {', '.join(TYPE_WORDS)}, not {text!r}")
    return TYPE_WORDS[word]


def combined_type(
    group: int,
    insisted: Sequence[tuple[str, DomainType]],
    untrusted: Sequence[str],
    wanted: DomainType | None,
) -> tuple[DomainType | None, list[str]]:
    """Combine what driver, trust and administrator want of a group's default domain (os 4.6).

    Args:
        group: its number.
        insisted: members for which the IOMMU's driver insists on a type, with that type.
        untrusted: names of the members that are not trusted.
        wanted: what the administrator asks for; None: nothing.

    Returns:
        The type, or None for the kernel's default; and lines for the log.

    Raises:
        RefusedError: EINVAL, if they cannot be reconciled.
    """
    log: list[str] = []
    driver: DomainType | None = None
    for name, kind in insisted:
        if driver is not None and kind is not driver:
            log.append(
                f"pci {name}: IOMMU driver error, requesting conflicting def_domain_type, "
                f"{driver.words} and {kind.words}, for devices in group {group}."
            )
            kind = DomainType.IDENTITY  # it takes precedence
        driver = kind
    if untrusted:
        if driver not in (None, DomainType.STRICT):
            assert driver is not None
            raise RefusedError(
                "EINVAL",
                f"{untrusted[0]} is not trusted and must be translated strictly, but its IOMMU's "
                f"driver insists on {driver.value}",
                f"pci {untrusted[0]}: Device is not trusted, but driver is overriding group "
                f"{group} to {driver.words}, refusing to probe.",
            )
        driver = DomainType.STRICT
    if wanted is not None and driver not in (None, wanted):
        assert driver is not None
        why = f"{untrusted[0]} is not trusted" if untrusted else "its IOMMU's driver insists"
        raise RefusedError(
            "EINVAL", f"group {group} must have type {driver.value}, as {why}: not {wanted.value}"
        )
    return wanted or driver, log
