/* Second-stage tables (fact sheet 4.8): an instance of the common walk. */
#include "vtd.h"

#define ENTRY_R 1ull
#define ENTRY_W 2ull
#define ENTRY_PS (1ull << 7)
#define ENTRY_SNP (1ull << 11)
#define ENTRY_IW (1ull << 62)
#define ENTRY_ADDRESS 0x000ffffffffff000ull /* 51:12 */

static __attribute__((noinline)) uint32_t reserved_bit(const struct iemu_vtd *v, uint64_t entry,
                                                       unsigned level, bool leaf)
{
    uint64_t sizes = VTD_GET(CAP, SSLPS, v->cap);

    if (entry & v->address_reserved & ENTRY_ADDRESS)
        return VTD_DIAG_LSS_2_ADDRESS;
    /* SSLPS bit 0: 2 MiB at level 2; bit 1: 1 GiB at level 3; above that PS is reserved. */
    if (level > 1 && (entry & ENTRY_PS) && (level > 3 || !(sizes >> (level - 2) & 1)))
        return VTD_DIAG_LSS_2_PAGE_SIZE;
    if ((entry & ENTRY_SNP) && (!leaf || !VTD_GET(ECAP, SC, v->ecap)))
        return VTD_DIAG_LSS_2_SNOOP;
    if (entry & ENTRY_IW)
        return VTD_DIAG_LSS_2_IW;
    return VTD_DIAG_LSS_2_ALIGNMENT;
}

static inline __attribute__((always_inline)) struct iemu_decoded
decode(const struct iemu_unit *unit, uint64_t entry, unsigned level, uint64_t address)
{
    const struct iemu_vtd *v = (const struct iemu_vtd *)unit;
    bool leaf = level == 1 || (entry & ENTRY_PS);
    uint64_t reserved;

    (void)address;
    /* Not present: neither R nor W, whatever else is set; the code depends on the access. */
    if (iemu_unlikely(!(entry & (ENTRY_R | ENTRY_W))))
        return (struct iemu_decoded){.kind = IEMU_ENTRY_FAULT};
    /* PS above level 3 is in the mask of a table entry, so such an entry never is a leaf. */
    reserved = leaf && level <= 3 ? v->leaf_reserved[level] : v->leaf_reserved[0];
    if (iemu_unlikely(entry & reserved))
        return (struct iemu_decoded){
            .kind = IEMU_ENTRY_FAULT,
            .diagnostic = reserved_bit(v, entry, level, leaf),
        };
    return (struct iemu_decoded){
        .kind = leaf ? IEMU_ENTRY_LEAF : IEMU_ENTRY_TABLE,
        .address = entry & ENTRY_ADDRESS,
        .permissions = entry & (ENTRY_R | ENTRY_W),
        .attributes = entry & ENTRY_SNP ? IEMU_SNOOP : 0,
        .shift = (uint8_t)iemu_level_shift(level),
        .next_level = (uint8_t)(level - 1),
    };
}

bool vtd_walk_second_stage(struct iemu_walk *walk)
{
    return iemu_walk(walk, decode);
}
