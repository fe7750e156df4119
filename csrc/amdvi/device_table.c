/* The device table and its cache (4). */
#include "amdvi.h"

#define DTE_BYTES 32u

/*
 * Reserved bits (4.2). Those that a feature would define are reserved without it (15): HAD, CXL
 * attributes and SATS below, GuestPagingMode and HPTMode above.
 */
static const uint64_t reserved[4] = {
    0x80000000000001fcull, /* 63, 8:2 */
    0x0000040000000000ull, /* 106 */
    0x08f0000000000000ull, /* 187, 183:180 */
    0x001f000000007fffull, /* 244:240, 206:192 */
};

/* Reserved bits first (4.1 step 5), then what the fields say (4.4). */
static uint32_t check(const struct iemu_amdvi *a, const struct amdvi_dte *dte)
{
    if (DTE_V(dte) && (dte->word[0] & reserved[0] || dte->word[1] & reserved[1]))
        return AMDVI_DIAG_DTE_RESERVED_LOW;
    if (DTE_IV(dte) && (dte->word[2] & reserved[2] || dte->word[3] & reserved[3]))
        return AMDVI_DIAG_DTE_RESERVED_HIGH;
    if (DTE_V(dte)) {
        if (DTE_TV(dte) && (DTE_MODE(dte) > a->levels || (!a->levels && DTE_ROOT(dte))))
            return AMDVI_DIAG_DTE_MODE;
        if (DTE_IOCTL(dte) == 3)
            return AMDVI_DIAG_DTE_IO_CONTROL;
    }
    if (DTE_IV(dte)) {
        if (DTE_INTCTL(dte) == 3)
            return AMDVI_DIAG_DTE_INTERRUPT_CONTROL;
        if (DTE_INTTABLEN(dte) > 11)
            return AMDVI_DIAG_DTE_INTERRUPT_LENGTH;
    }
    return AMDVI_DIAG_NONE;
}

/* SE and SA are in the half that V makes valid. */
static uint8_t suppression(const struct amdvi_dte *dte)
{
    if (!DTE_V(dte))
        return 0;
    return (DTE_SE(dte) ? AMDVI_SUPPRESS_LATER : 0) | (DTE_SA(dte) ? AMDVI_SUPPRESS_ALL : 0);
}

static uint32_t read_dte(struct iemu_amdvi *a, uint16_t requester, struct amdvi_passage *p,
                         struct amdvi_dte *dte)
{
    uint64_t base = iemu_reg64(&a->unit.regs, AMDVI_DevTabBase_AT);
    uint64_t offset = (uint64_t)requester * DTE_BYTES;
    uint64_t address = (base & AMDVI_MASK(DevTabBase, Base)) + offset;
    struct iemu_line *line;
    uint32_t diagnostic;

    if (offset >= (AMDVI_GET(DevTabBase, Size, base) + 1) * IEMU_PAGE)
        return AMDVI_DIAG_DEVICE_ID;
    a->unit.statistics.memory_reads++;
    if (!iemu_fetch_entry(&a->unit.machine->memory, address, dte->word, 4, a->unit.granule_words)) {
        p->address = address;
        return AMDVI_DIAG_DTE_READ;
    }
    iemu_trail_add(p->trail, IEMU_LEVEL_CONTEXT, address, dte->word, 4);
    p->suppress = suppression(dte);
    diagnostic = check(a, dte);
    if (diagnostic || !p->use_caches)
        return diagnostic;
    /* Both halves are cached, whether valid or not (13). */
    line = iemu_cache_fill(&a->unit.cache[IEMU_CACHE_CONTEXT], 0, requester, requester,
                           DTE_DOMAIN(dte));
    for (unsigned word = 0; word < 4; word++)
        line->value[word] = dte->word[word];
    line->flags = 0;
    iemu_trail_fill(&a->unit, IEMU_CACHE_CONTEXT, line, p->trail);
    return AMDVI_DIAG_NONE;
}

uint32_t amdvi_find_dte(struct iemu_amdvi *a, uint16_t requester, struct amdvi_passage *p,
                        struct amdvi_dte *dte)
{
    struct iemu_cache *cache = &a->unit.cache[IEMU_CACHE_CONTEXT];
    struct iemu_line *line;

    if (!p->use_caches)
        return read_dte(a, requester, p, dte);
    line = iemu_cache_lookup(cache, 0, requester, requester);
    if (!line)
        return read_dte(a, requester, p, dte);
    iemu_trail_hit(&a->unit, IEMU_CACHE_CONTEXT, line, p->trail, 0);
    for (unsigned word = 0; word < 4; word++)
        dte->word[word] = line->value[word];
    p->suppress = suppression(dte);
    return AMDVI_DIAG_NONE;
}
