/*
 * The context entry of a requester, from its cache or from root and context table (4.1, 4.3).
 * Part of the way of a miss, and so inlined into translate.c.
 */
#ifndef IEMU_VTD_CONTEXT_H
#define IEMU_VTD_CONTEXT_H

#include "vtd.h"

/*
 * The way of a miss is one function, so that its state stays in registers: its parts are always
 * inlined.
 */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* What the long way knows about one request beside request and result. */
struct passage {
    struct iemu_trail *trail; /* NULL unless watched */
    bool use_caches;          /* false: only the tables count, and nothing is filled */
    bool suppress;            /* FPD seen on the path */
    bool walked;              /* page tables decided, not pass-through */
};

struct context {
    uint64_t low;
    uint64_t high;
};

#define CONTEXT_P 1ull
#define CONTEXT_FPD 2ull
#define CONTEXT_TT(low) ((low) >> 2 & 3)
#define CONTEXT_AW(high) ((high)&7)
#define CONTEXT_DID(high) ((uint32_t)((high) >> 8 & 0xffff))
#define ENTRY_POINTER 0xfffffffffffff000ull /* with the bits above HAW checked to be 0 */

enum translation_type {
    TT_SECOND_STAGE = 0,
    TT_SECOND_STAGE_ATS = 1,
    TT_PASS_THROUGH = 2,
    TT_RESERVED = 3,
};

static uint32_t check_context(const struct iemu_vtd *v, const struct context *c)
{
    unsigned type = CONTEXT_TT(c->low), width = CONTEXT_AW(c->high);
    uint64_t low_reserved = 0xff0;
    uint64_t high_reserved = ~0xffffffull | 0x80 | ((uint64_t)~v->domain_mask & 0xffff) << 8;

    /* SSPTPTR is ignored for pass-through (4.3). */
    if (type != TT_PASS_THROUGH)
        low_reserved |= v->address_reserved;
    if (c->low & low_reserved || c->high & high_reserved)
        return VTD_DIAG_LCT_3;
    if (type == TT_RESERVED || (type == TT_SECOND_STAGE_ATS && !VTD_GET(ECAP, DT, v->ecap)) ||
        (type == TT_PASS_THROUGH && !VTD_GET(ECAP, PT, v->ecap)))
        return VTD_DIAG_LCT_4_2;
    /* AW: 001, 010, 011 for 3, 4, 5 levels; SAGAW has one bit each, bit 1 for 3 levels. */
    if (width < 1 || width > 3 || !(VTD_GET(CAP, SAGAW, v->cap) >> width & 1) ||
        (type == TT_PASS_THROUGH && width + 2 != v->largest_levels))
        return VTD_DIAG_LCT_4_1;
    return VTD_DIAG_NONE;
}

/*
 * CM=1 may cache what is not present or faulty. Not present: domain 0 (9.5). A present one has a
 * domain, and is matched by it as any other (9.2): what 9.4 asks of software must be enough.
 */
ALWAYS_INLINE void cache_bad_context(struct iemu_vtd *v, const struct iemu_request *request,
                                     const struct passage *p, uint64_t low, uint64_t high,
                                     uint32_t diagnostic)
{
    uint32_t domain = low & CONTEXT_P ? CONTEXT_DID(high) & v->domain_mask : 0;
    struct iemu_line *line;

    if (!p->use_caches || !VTD_GET(CAP, CM, v->cap))
        return;
    line = iemu_cache_fill(&v->unit.cache[IEMU_CACHE_CONTEXT], 0, request->requester,
                           request->requester, domain);
    line->value[0] = low;
    line->value[1] = high;
    line->value[2] = diagnostic;
    line->flags = IEMU_LEAF_NEGATIVE;
    iemu_trail_fill(&v->unit, IEMU_CACHE_CONTEXT, line, p->trail);
}

ALWAYS_INLINE uint32_t read_context(struct iemu_vtd *v, const struct iemu_request *request,
                                    struct passage *p, struct context *c)
{
    struct iemu_memory *memory = &v->unit.machine->memory;
    uint64_t root_address = (v->root & ENTRY_POINTER) + 16 * (request->requester >> 8);
    uint64_t root[2], entry[2], entry_address;
    struct iemu_line *line;
    uint32_t diagnostic;

    /* Root entries are not cached (9.1), apart from what is folded into context entries. */
    v->unit.statistics.memory_reads++;
    if (!iemu_fetch_entry(memory, root_address, root, 2, v->unit.granule_words))
        return VTD_DIAG_LRT_1;
    iemu_trail_add(p->trail, IEMU_LEVEL_ROOT, root_address, root, 2);
    if (!(root[0] & 1))
        return VTD_DIAG_LRT_2;
    if (root[0] & (0xffe | v->address_reserved) || root[1])
        return VTD_DIAG_LRT_3;

    entry_address = (root[0] & ENTRY_POINTER) + 16 * (request->requester & 0xff);
    v->unit.statistics.memory_reads++;
    if (!iemu_fetch_entry(memory, entry_address, entry, 2, v->unit.granule_words))
        return VTD_DIAG_LCT_1;
    iemu_trail_add(p->trail, IEMU_LEVEL_CONTEXT, entry_address, entry, 2);
    c->low = entry[0];
    c->high = entry[1];
    /* FPD counts even where the entry is not present (4.3). */
    p->suppress = c->low & CONTEXT_FPD;
    diagnostic = c->low & CONTEXT_P ? check_context(v, c) : VTD_DIAG_LCT_2;
    if (diagnostic) {
        cache_bad_context(v, request, p, c->low, c->high, diagnostic);
        return diagnostic;
    }
    if (p->use_caches) {
        line = iemu_cache_fill(&v->unit.cache[IEMU_CACHE_CONTEXT], 0, request->requester,
                               request->requester, CONTEXT_DID(c->high));
        line->value[0] = c->low;
        line->value[1] = c->high;
        line->flags = 0;
        iemu_trail_fill(&v->unit, IEMU_CACHE_CONTEXT, line, p->trail);
    }
    return VTD_DIAG_NONE;
}

ALWAYS_INLINE uint32_t find_context(struct iemu_vtd *v, const struct iemu_request *request,
                                    struct passage *p, struct context *c)
{
    struct iemu_cache *cache = &v->unit.cache[IEMU_CACHE_CONTEXT];
    struct iemu_line *line;

    if (!p->use_caches)
        return read_context(v, request, p, c);
    line = iemu_cache_lookup(cache, 0, request->requester, request->requester);
    if (iemu_unlikely(!line))
        return read_context(v, request, p, c);
    iemu_trail_hit(&v->unit, IEMU_CACHE_CONTEXT, line, p->trail, 0);
    c->low = line->value[0];
    c->high = line->value[1];
    p->suppress = c->low & CONTEXT_FPD;
    return line->flags & IEMU_LEAF_NEGATIVE ? (uint32_t)line->value[2] : VTD_DIAG_NONE;
}

#endif
