"""Global commands in and out of order, and invalidations by register (VT-d 2.4, 2.6, 2.7)."""

from __future__ import annotations

from iommu_emu.differential.generator.draft import Draft

TE, SRTP, QIE, IRE, SIRTP, CFI = (1 << bit for bit in (31, 30, 26, 25, 24, 23))
TOGGLES = TE | QIE | IRE | CFI

__all__ = [
    "IRE",
    "QIE",
    "SIRTP",
    "enable_translation",
    "invalidate_by_register",
    "odd_command",
    "one_shot",
    "set_root",
    "switch",
    "toggle",
]


def switch(draft: Draft, bit: int, on: bool) -> None:
    """Set or clear one toggle bit, as software is told to: one at a time."""
    draft.enabled = draft.enabled | bit if on else draft.enabled & ~bit
    draft.write("GCMD", draft.enabled)
    draft.changed = True


def one_shot(draft: Draft, bit: int) -> None:
    """Do a one-shot command beside the present toggles."""
    draft.write("GCMD", draft.enabled | bit)
    draft.changed = True


def set_root(draft: Draft) -> None:
    """Program and latch the root table pointer."""
    if draft.one_in(4):
        draft.write("RTADDR", draft.root & 0xFFFFFFFF, 4)
        draft.write("RTADDR", draft.root >> 32, 4, offset=4)
    else:
        draft.write("RTADDR", draft.root)
    one_shot(draft, SRTP)


def enable_translation(draft: Draft) -> None:
    """Set TE."""
    switch(draft, TE, True)


def toggle(draft: Draft) -> None:
    """Toggle one of the enables, or set the root table pointer again."""
    rng = draft.rng
    choice = rng.randrange(6)
    if choice <= 2:
        # Off is interesting, and on again right after it, most of the time.
        was_on = bool(draft.enabled & TE)
        switch(draft, TE, not was_on)
        if was_on and not draft.one_in(3):
            switch(draft, TE, True)
    elif choice == 3:
        set_root(draft)
    elif choice == 4 and draft.remapping:
        switch(draft, IRE, not draft.enabled & IRE)
    elif draft.enabled & QIE:
        switch(draft, QIE, False)
    else:
        draft.write("IQT", 0)
        switch(draft, QIE, True)


def odd_command(draft: Draft) -> None:
    """Write GCMD with several changed bits, reserved ones, or ones of features not there.

    Or latch a root table pointer of another mode, or out of reach.
    """
    if draft.one_in(3):
        width = draft.configuration.host_address_width
        odd = draft.rng.choice((1 << 10, 2 << 10, 3 << 10, 1 << draft.rng.randrange(width, 64)))
        draft.write("RTADDR", draft.root | odd)
        one_shot(draft, SRTP)
        return
    value = draft.bits(32) & ~SIRTP
    if not draft.remapping:
        value &= ~(IRE | CFI)
    draft.enabled = value & TOGGLES
    draft.write("GCMD", value)
    draft.changed = True


def invalidate_by_register(draft: Draft) -> None:
    """Write CCMD or IVA and IOTLB: any granularity, whole or in halves, or without the trigger."""
    rng = draft.rng
    if draft.one_in(2):
        value = rng.randrange(4) << 61 | rng.randrange(4) << 32 | rng.getrandbits(32)
        register, trigger = "CCMD", 1 << 63
    else:
        mask = rng.choice((0, 1, 9, 18, 19, 63))
        draft.write("IVA", rng.choice((0x4000, 0x20_0000, rng.getrandbits(52) << 12)) | mask)
        value = rng.randrange(4) << 60 | rng.randrange(4) << 48 | rng.choice((0, 1, 0xFFFF)) << 32
        register, trigger = "IOTLB", 1 << 63
    if not draft.one_in(6):
        value |= trigger
    if draft.one_in(8):
        value |= 1 << rng.randrange(64)
    if draft.one_in(3):
        draft.write(register, value & 0xFFFFFFFF, 4)
        draft.write(register, value >> 32, 4, offset=4)
    else:
        draft.write(register, value)
