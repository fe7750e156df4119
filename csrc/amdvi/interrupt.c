/* Interrupt remapping (12) with 32-bit entries; 128-bit ones need EFR.GASup, which is refused. */
#include "amdvi.h"

enum delivery {
    FIXED = 0,
    ARBITRATED = 1,
    SMI = 2,
    NMI = 4,
    INIT = 5,
    EXT_INT = 7,
};

enum interrupt_control {
    ABORT = 0,
    FORWARD = 1,
};

#define DATA_DELIVERY(data) ((data) >> 8 & 7)
#define DATA_INDEX(data)    ((data)&0x7ff)
#define ADDRESS_LOGICAL     (1ull << 2) /* DM */
#define ADDRESS_DESTINATION 0xff000ull  /* 19:12 */
#define REPORTED_BASE       0xfdf8000000ull

#define IRTE_REMAP_EN          1u
#define IRTE_SUP_IO_PF         2u
#define IRTE_TYPE(irte)        ((irte) >> 2 & 7)
#define IRTE_LOGICAL(irte)     ((irte) >> 6 & 1)
#define IRTE_RESERVED          0xff000080u /* 31:24, GuestMode */
#define IRTE_DESTINATION(irte) ((irte) >> 8 & 0xff)
#define IRTE_VECTOR(irte)      ((irte) >> 16 & 0xff)

/* 12.1 step 2: what is neither fixed nor arbitrated passes by its own bit, or not at all. */
static bool passes(const struct amdvi_dte *dte, uint64_t address, uint32_t data)
{
    bool physical = !(address & ADDRESS_LOGICAL);

    switch (DATA_DELIVERY(data)) {
    case SMI:
        return true;
    case NMI:
        return DTE_NMIPASS(dte) && physical;
    case INIT:
        return DTE_INITPASS(dte) && physical;
    case EXT_INT:
        return DTE_EINTPASS(dte) && physical;
    default:
        return false;
    }
}

static uint32_t find_entry(struct iemu_amdvi *a, uint16_t requester, const struct amdvi_dte *dte,
                           uint32_t index, struct amdvi_passage *p, uint32_t *irte)
{
    struct iemu_cache *cache = &a->unit.cache[IEMU_CACHE_INTERRUPT];
    bool use_cache = !amdvi_control(a, AMDVI_MASK(Control, IRTCacheDis));
    uint64_t who = (uint64_t)requester << 16 | index, pair;
    uint64_t address = DTE_INTTABROOT(dte) + 4ull * index;
    struct iemu_line *line = use_cache ? iemu_cache_lookup(cache, 0, who, (uint32_t)who) : NULL;

    if (line) {
        *irte = (uint32_t)line->value[0];
        return AMDVI_DIAG_NONE;
    }
    a->unit.statistics.memory_reads++;
    if (!iemu_fetch64(&a->unit.machine->memory, address & ~7ull, &pair)) {
        p->address = address;
        return AMDVI_DIAG_INTERRUPT_READ;
    }
    *irte = (uint32_t)(pair >> (address & 4) * 8);
    if (use_cache && (*irte & IRTE_REMAP_EN || a->np_cache)) {
        line = iemu_cache_fill(cache, 0, who, (uint32_t)who, 0);
        line->value[0] = *irte;
        line->flags = 0;
    }
    return AMDVI_DIAG_NONE;
}

/* What the entry does not name stays as it was in the original message (12.1 step 8). */
static void compose(uint32_t irte, uint64_t *address, uint32_t *data)
{
    *address = (*address & ~(ADDRESS_DESTINATION | ADDRESS_LOGICAL)) |
               (uint64_t)IRTE_DESTINATION(irte) << 12 | (uint64_t)IRTE_LOGICAL(irte) << 2;
    *data = (*data & ~0x7ffu) | IRTE_VECTOR(irte) | IRTE_TYPE(irte) << 8;
}

static uint32_t remap(struct iemu_amdvi *a, const struct iemu_request *request,
                      struct amdvi_passage *p, uint64_t *address, uint32_t *data, uint32_t *domain)
{
    struct amdvi_dte dte;
    uint32_t irte, diagnostic = amdvi_find_dte(a, request->requester, p, &dte);

    if (diagnostic)
        return diagnostic;
    if (!DTE_IV(&dte)) /* whatever V is (4.3) */
        return AMDVI_DIAG_NONE;
    if (DTE_V(&dte))
        *domain = DTE_DOMAIN(&dte);
    if (DTE_IG(&dte))
        p->suppress |= AMDVI_SUPPRESS_ALL;
    if (DATA_DELIVERY(*data) != FIXED && DATA_DELIVERY(*data) != ARBITRATED)
        return passes(&dte, *address, *data) ? AMDVI_DIAG_NONE : AMDVI_DIAG_INTERRUPT_TYPE;
    if (DTE_INTCTL(&dte) == ABORT)
        return AMDVI_DIAG_REQUEST_INTERRUPT_BLOCKED;
    if (DTE_INTCTL(&dte) == FORWARD)
        return AMDVI_DIAG_NONE;
    if (DATA_INDEX(*data) >> DTE_INTTABLEN(&dte))
        return AMDVI_DIAG_INTERRUPT_INDEX;
    diagnostic = find_entry(a, request->requester, &dte, DATA_INDEX(*data), p, &irte);
    if (diagnostic)
        return diagnostic;
    if (irte & IRTE_SUP_IO_PF)
        p->suppress |= AMDVI_SUPPRESS_ALL;
    if (!(irte & IRTE_REMAP_EN))
        return AMDVI_DIAG_INTERRUPT_NOT_REMAPPED;
    if (irte & IRTE_RESERVED || IRTE_TYPE(irte) > ARBITRATED)
        return AMDVI_DIAG_INTERRUPT_RESERVED;
    compose(irte, address, data);
    return AMDVI_DIAG_NONE;
}

void amdvi_remap_interrupt(struct iemu_unit *unit, const struct iemu_request *request,
                           uint64_t *address, uint32_t *data, struct iemu_result *result)
{
    struct iemu_amdvi *a = amdvi_of(unit);
    /* The log names the interrupt by its place in the HyperTransport map (7.1). */
    struct amdvi_passage p = {
        .use_caches = true,
        .interrupt = true,
        .address = iemu_in_interrupt_range(request->address)
                       ? REPORTED_BASE | (request->address & (IEMU_INTERRUPT_SIZE - 1))
                       : request->address,
    };
    uint32_t diagnostic, domain = 0;

    if (!amdvi_control(a, AMDVI_MASK(Control, IommuEn)))
        return;
    diagnostic = remap(a, request, &p, address, data, &domain);
    if (!diagnostic)
        return;
    amdvi_fault(result, diagnostic);
    result->domain = domain;
    result->recorded = amdvi_report(a, request, diagnostic, domain, &p);
}
