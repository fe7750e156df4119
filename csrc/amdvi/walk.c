/* Host (v1) page tables (5): an instance of the common walk. */
#include "amdvi.h"

#define ENTRY_PR           1ull
#define ENTRY_NEXT(entry)  ((unsigned)((entry) >> 9 & 7))
#define ENTRY_U            (1ull << 59)
#define ENTRY_FC           (1ull << 60)
#define ENTRY_ADDRESS      0x000ffffffffff000ull /* 51:12 */
#define PDE_RESERVED       0x1ff0000000000000ull /* 60:52 */
#define PTE_RESERVED       0x07f0000000000000ull /* 58:52; 59 is U, 60 is FC */
#define NEXT_LEVEL_SIZED   7u
#define HIGHEST_LEAF_LEVEL 5u
#define LARGEST_PAGE       51u

static inline __attribute__((always_inline)) struct iemu_decoded fault(uint32_t diagnostic)
{
    return (struct iemu_decoded){.kind = IEMU_ENTRY_FAULT, .diagnostic = diagnostic};
}

static inline __attribute__((always_inline)) struct iemu_decoded
decode_leaf(uint64_t entry, unsigned level, unsigned next)
{
    unsigned shift = iemu_level_shift(level);
    uint64_t address = entry & ENTRY_ADDRESS;

    if (iemu_unlikely(level > HIGHEST_LEAF_LEVEL))
        return fault(AMDVI_DIAG_LEVEL);
    if (next == NEXT_LEVEL_SIZED) {
        /* 5.3: the lowest 0 bit from bit 12 up is half the size. */
        unsigned size = (unsigned)__builtin_ctzll(~(address | 0xfff)) + 1;

        if (size <= shift || size >= shift + 9 || size > LARGEST_PAGE)
            return fault(AMDVI_DIAG_PAGE_SIZE);
        shift = size;
    }
    if (iemu_unlikely(entry & PTE_RESERVED))
        return fault(AMDVI_DIAG_PTE_RESERVED);
    return (struct iemu_decoded){
        .kind = IEMU_ENTRY_LEAF,
        .address = address & ~iemu_low_mask(shift),
        .permissions = entry >> 61 & (IEMU_READ | IEMU_WRITE),
        .attributes = (entry & ENTRY_FC ? IEMU_SNOOP : 0) |
                      (entry & ENTRY_U ? IEMU_UNTRANSLATED_ONLY : 0),
        .shift = (uint8_t)shift,
    };
}

/* In the order of 5.2: present, level, reserved bits, skipped levels. */
static inline __attribute__((always_inline)) struct iemu_decoded
decode(const struct iemu_unit *unit, uint64_t entry, unsigned level, uint64_t address)
{
    unsigned next = ENTRY_NEXT(entry);
    uint64_t skipped;

    (void)unit;
    if (iemu_unlikely(!(entry & ENTRY_PR)))
        return fault(AMDVI_DIAG_NOT_PRESENT);
    if (next == 0 || next == NEXT_LEVEL_SIZED)
        return decode_leaf(entry, level, next);
    if (iemu_unlikely(next >= level))
        return fault(AMDVI_DIAG_LEVEL);
    if (iemu_unlikely(entry & PDE_RESERVED))
        return fault(AMDVI_DIAG_PDE_RESERVED);
    skipped = iemu_low_mask(iemu_level_shift(level)) & ~iemu_low_mask(iemu_level_shift(next + 1));
    if (iemu_unlikely(address & skipped))
        return fault(AMDVI_DIAG_SKIPPED_BITS);
    return (struct iemu_decoded){
        .kind = IEMU_ENTRY_TABLE,
        .address = entry & ENTRY_ADDRESS,
        .permissions = entry >> 61 & (IEMU_READ | IEMU_WRITE),
        .next_level = (uint8_t)next,
    };
}

bool amdvi_walk_host(struct iemu_walk *walk)
{
    return iemu_walk(walk, decode);
}
