/*
 * One request through an AMD-Vi unit. A hit is one probe of the IOTLB; everything else is the
 * long way: IOTLB, device table entry, special ranges, valid bits, exclusion, page tables.
 */
#include "amdvi.h"

#include "../hit.h"

/* The HyperTransport ranges of 7.1; EFR2.HTRangeIgnore is not set. */
#define HT_BASE 0xfd00000000ull
#define HT_END  0x10000000000ull

/* Flags of an IOTLB line: what of its device table entry outlives it here. */
#define LINE_SUPPRESS (AMDVI_SUPPRESS_LATER | AMDVI_SUPPRESS_ALL)

static inline bool is_special(uint64_t address)
{
    return iemu_in_interrupt_range(address) || address - HT_BASE < HT_END - HT_BASE;
}

/* Refused requests get a target abort (4.3); what never reaches the tables is not supported. */
void amdvi_fault(struct iemu_result *result, uint32_t diagnostic)
{
    result->diagnostic = diagnostic;
    result->fault = amdvi_fault_rows[diagnostic].code;
    result->outcome = result->fault ? IEMU_ABORTED : IEMU_UNSUPPORTED;
    result->permissions = 0;
}

/* ---- requests that are not translated ----------------------------------------------------------- */

static uint32_t pass(const struct iemu_request *request, struct iemu_result *result)
{
    result->address = request->address;
    result->page_shift = 12;
    result->permissions = IEMU_READ | IEMU_WRITE;
    result->attributes = IEMU_UNTRANSLATED_PASS;
    result->domain = 0;
    return AMDVI_DIAG_NONE;
}

static bool is_interrupt(const struct iemu_request *request)
{
    return request->access == IEMU_WRITE && request->length == 4 && request->address % 4 == 0;
}

/* FEEx_xxxxh: never page-walked. IntCtl needs the message's data: amdvi_remap_interrupt. */
static uint32_t interrupt_range(const struct iemu_request *request, struct iemu_result *result)
{
    if (request->access != IEMU_WRITE)
        return AMDVI_DIAG_REQUEST_INTERRUPT_READ;
    if (!is_interrupt(request))
        return AMDVI_DIAG_REQUEST_INTERRUPT_RESERVED;
    result->address = request->address;
    result->outcome = IEMU_INTERRUPT;
    result->domain = 0;
    return AMDVI_DIAG_NONE;
}

static uint32_t system_management(const struct iemu_request *request, const struct amdvi_dte *dte,
                                  bool *translate, struct iemu_result *result)
{
    switch (DTE_SYSMGT(dte)) {
    case 1:
        return pass(request, result);
    case 3:
        *translate = true;
        return DTE_TV(dte) ? AMDVI_DIAG_NONE : AMDVI_DIAG_REQUEST_NO_TABLE;
    default: /* 0; 2 would forward INTx messages, which no PCIe function sends by address */
        return request->access == IEMU_WRITE ? AMDVI_DIAG_REQUEST_SYSTEM_POSTED
                                             : AMDVI_DIAG_REQUEST_SYSTEM_OTHER;
    }
}

static uint32_t port_io(const struct iemu_request *request, const struct amdvi_dte *dte,
                        bool *translate, struct iemu_result *result)
{
    switch (DTE_IOCTL(dte)) {
    case 0:
        return AMDVI_DIAG_REQUEST_PORT_IO;
    case 1:
        return pass(request, result);
    default:
        *translate = true;
        return DTE_TV(dte) ? AMDVI_DIAG_NONE : AMDVI_DIAG_REQUEST_NO_TABLE;
    }
}

/* What a valid entry says of the HyperTransport ranges (7.1, 7.2). */
static uint32_t ht_range(const struct iemu_request *request, const struct amdvi_dte *dte,
                         bool *translate, struct iemu_result *result)
{
    uint64_t address = request->address;

    if (address < 0xfdf8000000ull) /* reserved interrupt range */
        return request->access == IEMU_WRITE ? AMDVI_DIAG_REQUEST_INTERRUPT_RESERVED
                                             : AMDVI_DIAG_REQUEST_INTERRUPT_READ;
    if (address < 0xfdf9000000ull) { /* interrupt and EOI */
        if (request->access != IEMU_WRITE)
            return AMDVI_DIAG_REQUEST_INTERRUPT_READ;
        if (DTE_IV(dte) && DTE_INTCTL(dte) == 0)
            return AMDVI_DIAG_REQUEST_INTERRUPT_BLOCKED;
        return pass(request, result);
    }
    if (address < 0xfdf9100000ull) /* legacy PIC acknowledge: no control */
        return pass(request, result);
    if (address < 0xfdf9200000ull)
        return system_management(request, dte, translate, result);
    if (address - 0xfdfc000000ull < 0x2000000)
        return port_io(request, dte, translate, result);
    if (address - 0xfdfe000000ull < 0x22000000) /* configuration, device messages: no control */
        return pass(request, result);
    *translate = true; /* reserved, and address translation without HtAtsResv */
    return AMDVI_DIAG_NONE;
}

/* ---- permissions and the answer ------------------------------------------------------------------ */

/* The answer that an IOTLB line, or a walk's leaf in the same form, gives. */
static uint32_t answer(const struct iemu_request *request, uint64_t leaf, unsigned shift,
                       struct iemu_result *result)
{
    result->permissions = leaf & IEMU_LEAF_PERMISSIONS;
    result->page_shift = (uint8_t)shift;
    result->attributes = leaf & IEMU_LEAF_SNOOP ? IEMU_SNOOP : 0;
    if (request->access & IEMU_WRITE & ~leaf)
        return AMDVI_DIAG_WRITE_PERMISSION;
    if (request->access & IEMU_READ & ~leaf)
        return AMDVI_DIAG_READ_PERMISSION;
    result->address = (leaf & ~iemu_low_mask(shift)) | (request->address & iemu_low_mask(shift));
    return AMDVI_DIAG_NONE;
}

static void fill_iotlb(struct iemu_amdvi *a, const struct iemu_request *request,
                       const struct amdvi_passage *p, uint64_t who, uint32_t domain,
                       uint64_t leaf, unsigned shift, uint32_t diagnostic)
{
    struct iemu_line *line;

    /* Nothing that grants nothing is kept, unless NpCache says so (13). */
    if (!p->use_caches || (!(leaf & IEMU_LEAF_PERMISSIONS) && !a->np_cache))
        return;
    line = iemu_cache_fill(&a->unit.cache[IEMU_CACHE_IOTLB],
                           iemu_page_key(request->address, shift), who,
                           iemu_page_index(request->address, shift), domain);
    line->value[0] = leaf;
    line->value[1] = diagnostic;
    line->flags = p->suppress & LINE_SUPPRESS;
    iemu_trail_fill(&a->unit, IEMU_CACHE_IOTLB, line, p->trail);
}

static uint32_t use_line(const struct iemu_request *request, const struct iemu_line *line,
                         unsigned shift, struct amdvi_passage *p, struct iemu_result *result)
{
    p->suppress = line->flags & LINE_SUPPRESS;
    result->domain = line->domain;
    if (line->value[0] & IEMU_LEAF_NEGATIVE)
        return (uint32_t)line->value[1];
    return answer(request, line->value[0], shift, result);
}

/* ---- the long way ---------------------------------------------------------------------------------- */

/* Mode 0: the address itself, subject to IR and IW; cached by 4 KiB page under its domain. */
static uint32_t identity(struct iemu_amdvi *a, const struct iemu_request *request,
                         struct amdvi_passage *p, const struct amdvi_dte *dte, uint64_t who,
                         struct iemu_result *result)
{
    uint64_t leaf = (request->address & ~0xfffull) | DTE_PERMISSIONS(dte);

    fill_iotlb(a, request, p, who, DTE_DOMAIN(dte), leaf, 12, 0);
    return answer(request, leaf, 12, result);
}

static uint32_t walk_tables(struct iemu_amdvi *a, const struct iemu_request *request,
                            struct amdvi_passage *p, const struct amdvi_dte *dte, uint64_t who,
                            struct iemu_result *result)
{
    uint32_t domain = DTE_DOMAIN(dte);
    struct iemu_walk walk = {
        .unit = &a->unit,
        .trail = p->trail,
        .address = request->address,
        .table = DTE_ROOT(dte),
        .domain = domain,
        .level = (uint8_t)DTE_MODE(dte),
        .use_caches = p->use_caches,
    };
    uint64_t leaf;
    bool found;

    if (request->address & ~iemu_low_mask(iemu_level_shift(walk.level + 1u)))
        return AMDVI_DIAG_ADDRESS_WIDTH;
    found = amdvi_walk_host(&walk);
    a->statistics.memory_reads += walk.reads;
    if (walk.fetch_failed) {
        p->address = walk.entry_address;
        return AMDVI_DIAG_TABLE_READ;
    }
    if (!found) {
        fill_iotlb(a, request, p, who, domain, IEMU_LEAF_NEGATIVE, 12, walk.leaf.diagnostic);
        return walk.leaf.diagnostic;
    }
    leaf = walk.leaf.address | (walk.permissions & DTE_PERMISSIONS(dte)) |
           (walk.leaf.attributes & IEMU_SNOOP ? IEMU_LEAF_SNOOP : 0);
    fill_iotlb(a, request, p, who, domain, leaf, walk.leaf.shift, 0);
    return answer(request, leaf, walk.leaf.shift, result);
}

/* Whether the address is in the exclusion range (3.7); whether it applies needs the entry. */
static bool in_exclusion(const struct iemu_amdvi *a, uint64_t address)
{
    uint64_t base = iemu_reg64(&a->unit.regs, AMDVI_ExclBase_AT);
    uint64_t limit = iemu_reg64(&a->unit.regs, AMDVI_ExclLimit_AT) | 0xfff;

    return base & AMDVI_MASK(ExclBase, ExEn) &&
           address >= (base & AMDVI_MASK(ExclBase, Base)) && address <= limit;
}

static bool excluded(const struct iemu_amdvi *a, const struct amdvi_dte *dte, uint64_t address)
{
    return in_exclusion(a, address) &&
           (iemu_reg64(&a->unit.regs, AMDVI_ExclBase_AT) & AMDVI_MASK(ExclBase, Allow) ||
            DTE_EX(dte));
}

static struct iemu_line *find_line(struct iemu_amdvi *a, const struct iemu_request *request,
                                   struct amdvi_passage *p, uint64_t who, unsigned *shift)
{
    struct iemu_line *line =
        iemu_cache_find(&a->unit.cache[IEMU_CACHE_IOTLB], request->address, who, shift);

    if (line)
        iemu_trail_hit(&a->unit, IEMU_CACHE_IOTLB, line, p->trail,
                       p->trail ? p->trail->count : 0);
    return line;
}

/* A memory request through a valid entry: 4.3 from TV on. */
static uint32_t translate_by(struct iemu_amdvi *a, const struct iemu_request *request,
                             struct amdvi_passage *p, const struct amdvi_dte *dte,
                             struct iemu_result *result)
{
    bool by_domain = a->unit.iotlb_lookup == IEMU_BY_DOMAIN;
    uint64_t who = by_domain ? DTE_DOMAIN(dte) : request->requester;
    const struct iemu_line *line;
    unsigned shift;

    if (!DTE_TV(dte))
        return AMDVI_DIAG_NOT_VALID;
    /* GV counts for nothing without GTEn, which needs EFR.GTSup. */
    if (request->flags & IEMU_HAS_PASID)
        return AMDVI_DIAG_PASID;
    if (excluded(a, dte, request->address))
        return pass(request, result);
    if (by_domain && p->use_caches) {
        line = find_line(a, request, p, who, &shift);
        if (line)
            return use_line(request, line, shift, p, result);
    }
    return DTE_MODE(dte) ? walk_tables(a, request, p, dte, who, result)
                         : identity(a, request, p, dte, who, result);
}

/* The unit is on. */
static uint32_t remap(struct iemu_amdvi *a, const struct iemu_request *request,
                      struct amdvi_passage *p, struct iemu_result *result)
{
    bool plain = request->at == IEMU_UNTRANSLATED && !(request->flags & IEMU_HAS_PASID);
    bool special = plain && is_special(request->address), translate = false;
    const struct iemu_line *line;
    struct amdvi_dte dte;
    uint32_t diagnostic;
    unsigned shift;

    if (plain && !special && p->use_caches && a->unit.iotlb_lookup == IEMU_BY_REQUESTER &&
        !in_exclusion(a, request->address)) {
        line = find_line(a, request, p, request->requester, &shift);
        if (line)
            return use_line(request, line, shift, p, result);
    }
    diagnostic = amdvi_find_dte(a, request->requester, p, &dte);
    if (diagnostic)
        return diagnostic;
    result->domain = DTE_DOMAIN(&dte);
    /* ATS needs the capability IotlbSup, which is not there (8). */
    if (request->at == IEMU_TRANSLATION_REQUEST)
        return AMDVI_DIAG_REQUEST_TRANSLATION;
    if (request->at == IEMU_TRANSLATED)
        return AMDVI_DIAG_REQUEST_TRANSLATED;
    if (plain && iemu_in_interrupt_range(request->address))
        return interrupt_range(request, result);
    if (!DTE_V(&dte))
        return pass(request, result);
    if (special) {
        diagnostic = ht_range(request, &dte, &translate, result);
        if (diagnostic || !translate)
            return diagnostic;
    }
    return translate_by(a, request, p, &dte, result);
}

/* Decides one request; fills caches as `p` says, logs nothing. */
static void resolve(struct iemu_amdvi *a, const struct iemu_request *request,
                    struct amdvi_passage *p, struct iemu_result *result)
{
    uint32_t diagnostic;

    *result = (struct iemu_result){0};
    p->address = request->address;
    if (request->at == IEMU_AT_RESERVED)
        diagnostic = AMDVI_DIAG_BAD_AT;
    else if (amdvi_control(a, AMDVI_MASK(Control, IommuEn)))
        diagnostic = remap(a, request, p, result);
    else if (request->at == IEMU_TRANSLATION_REQUEST)
        diagnostic = AMDVI_DIAG_BAD_AT; /* nobody is there to answer it */
    else if (request->at == IEMU_UNTRANSLATED && iemu_in_interrupt_range(request->address))
        diagnostic = is_interrupt(request) ? interrupt_range(request, result)
                                           : (uint32_t)AMDVI_DIAG_NO_INTERRUPT;
    else
        diagnostic = pass(request, result);
    if (diagnostic)
        amdvi_fault(result, diagnostic);
}

/* ---- entry points ------------------------------------------------------------------------------------ */

static __attribute__((noinline)) void long_way(struct iemu_amdvi *a,
                                               const struct iemu_request *request,
                                               struct iemu_result *result)
{
    struct amdvi_passage p = {.use_caches = true};

    resolve(a, request, &p, result);
    if (iemu_unlikely(result->diagnostic))
        result->recorded = amdvi_report(a, request, result->diagnostic, result->domain, &p);
}

void amdvi_translate(struct iemu_unit *unit, const struct iemu_request *request,
                     struct iemu_result *result)
{
    struct iemu_amdvi *a = amdvi_of(unit);

    if (iemu_likely(a->quick && !(request->at | (request->flags & IEMU_HAS_PASID)) &&
                    !is_special(request->address)) &&
        iemu_likely(iemu_iotlb_hit(unit, request, result)))
        return;
    long_way(a, request, result);
}

/* The invalidations that software owed for the change that the watch found (9.2, 13). */
static uint32_t owed(struct iemu_unit *unit, const struct iemu_stale_use *use)
{
    uint16_t requester = use->request.requester;
    bool entry_cached = iemu_cache_probe(&unit->cache[IEMU_CACHE_CONTEXT], 0, requester, requester);

    if (use->level == IEMU_LEVEL_UNKNOWN)
        return IEMU_OWED_IOTLB_DOMAIN;
    if (use->level < IEMU_LEVEL_CONTEXT)
        return IEMU_OWED_IOTLB_PAGE;
    if (use->level == IEMU_LEVEL_REGISTER)
        return IEMU_OWED_CONTEXT_GLOBAL | IEMU_OWED_IOTLB_GLOBAL;
    /* The entry may have been invalidated already while the translations were not. */
    return IEMU_OWED_IOTLB_DOMAIN | (entry_cached ? IEMU_OWED_CONTEXT_DEVICE : 0u);
}

static void translate_watched(struct iemu_unit *unit, const struct iemu_request *request,
                              struct iemu_result *result)
{
    struct iemu_amdvi *a = amdvi_of(unit);
    struct iemu_trail used = {0}, now = {0};
    struct amdvi_passage p = {.trail = &used, .use_caches = true}, q = {.trail = &now};
    struct iemu_result fresh;
    uint64_t reads;

    resolve(a, request, &p, result);
    /* The second look is the detector's, not the device's: it leaves no trace. */
    reads = a->statistics.memory_reads;
    resolve(a, request, &q, &fresh);
    a->statistics.memory_reads = reads;
    iemu_watch_compare(unit, request, result, &used, &fresh, &now, owed);
    if (result->diagnostic)
        result->recorded = amdvi_report(a, request, result->diagnostic, result->domain, &p);
}

static void translate_traced(struct iemu_unit *unit, const struct iemu_request *request,
                             struct iemu_result *result)
{
    (unit->watch ? translate_watched : amdvi_translate)(unit, request, result);
    iemu_trace_put(unit->machine, (struct iemu_trace_event){.kind = IEMU_TRACE_TRANSLATE,
                                                            .address = request->address,
                                                            .a = result->address,
                                                            .b = request->access,
                                                            .requester = request->requester,
                                                            .code = result->fault,
                                                            .unit = (uint16_t)unit->number});
}

void amdvi_choose_translate(struct iemu_unit *unit)
{
    struct iemu_amdvi *a = amdvi_of(unit);
    uint64_t exclusion = iemu_reg64(&unit->regs, AMDVI_ExclBase_AT);

    unit->translate = iemu_tracing(unit->machine) ? translate_traced
                      : unit->watch               ? translate_watched
                                                  : amdvi_translate;
    a->quick = amdvi_control(a, AMDVI_MASK(Control, IommuEn)) &&
               !(exclusion & AMDVI_MASK(ExclBase, ExEn)) &&
               unit->iotlb_lookup == IEMU_BY_REQUESTER;
}
