/* Second-stage tables (fact sheet 4.8): an instance of the common walk. */
#ifndef VTD_WALK_H
#define VTD_WALK_H

#include "vtd.h"

#define ENTRY_R       1ull
#define ENTRY_W       2ull
#define ENTRY_PS      (1ull << 7)
#define ENTRY_SNP     (1ull << 11)
#define ENTRY_IW      (1ull << 62)
#define ENTRY_ADDRESS 0x000ffffffffff000ull /* 51:12 */

/* walk.c: the diagnostic of the first reserved bit of a present entry that is set. */
uint32_t vtd_reserved_bit(const struct iemu_vtd *v, uint64_t entry, unsigned level, bool leaf);

static inline __attribute__((always_inline)) struct iemu_decoded
vtd_decode(const struct iemu_unit *unit, uint64_t entry, unsigned level, uint64_t address)
{
    const struct iemu_vtd *v = (const struct iemu_vtd *)unit;
    bool leaf = level == 1 || (entry & ENTRY_PS);
    /* PS above level 3 is in the mask of a table entry, so such an entry never is a leaf. */
    uint64_t reserved = leaf && level <= 3 ? v->leaf_reserved[level] : v->leaf_reserved[0];
    struct iemu_decoded d = {
        .kind = leaf ? IEMU_ENTRY_LEAF : IEMU_ENTRY_TABLE,
        .address = entry & ENTRY_ADDRESS,
        .permissions = entry & (ENTRY_R | ENTRY_W),
        .attributes = entry & ENTRY_SNP ? IEMU_SNOOP : 0,
        .shift = (uint8_t)iemu_level_shift(level),
        .next_level = (uint8_t)(level - 1),
    };

    (void)address;
    if (iemu_unlikely(!d.permissions)) {
        /* Not present: neither R nor W, whatever else is set; the code depends on the access. */
        d.kind = IEMU_ENTRY_FAULT;
    } else if (iemu_unlikely(entry & reserved)) {
        d.kind = IEMU_ENTRY_FAULT;
        d.diagnostic = vtd_reserved_bit(v, entry, level, leaf);
    }
    return d;
}

/* Inlined, so that a walk's state stays in registers. */
static inline __attribute__((always_inline)) bool vtd_walk_second_stage(struct iemu_walk *walk)
{
    return iemu_walk(walk, vtd_decode);
}

#endif
