/*
 * One request through an AMD-Vi unit. A hit is one probe of the IOTLB; everything else is the
 * long way: IOTLB, device table entry, special ranges, valid bits, exclusion, page tables.
 */
#include "amdvi.h"

#include "../hit.h"

/* The HyperTransport ranges of 7.1; EFR2.HTRangeIgnore is not set. */
#define HT_BASE          0xfd00000000ull /* reserved interrupt range */
#define HT_INTERRUPT     0xfdf8000000ull /* interrupt and EOI */
#define HT_INTERRUPT_END 0xfdf9000000ull
#define HT_SYSTEM        0xfdf9100000ull /* system management */
#define HT_SYSTEM_END    0xfdf9200000ull
#define HT_PORT_IO       0xfdfc000000ull
#define HT_PORT_IO_END   0xfdfe000000ull
#define HT_END           0x10000000000ull

/* Flags of an IOTLB line: what of its device table entry outlives it here. */
#define LINE_SUPPRESS (AMDVI_SUPPRESS_LATER | AMDVI_SUPPRESS_ALL)

static inline bool is_special(uint64_t address)
{
    return iemu_in_interrupt_range(address) || address - HT_BASE < HT_END - HT_BASE;
}

static bool in_interrupt_range(uint64_t address)
{
    return iemu_in_interrupt_range(address) ||
           (address >= HT_INTERRUPT && address < HT_INTERRUPT_END);
}

/* What has no translation at all (8, 10.2). */
static bool is_untranslatable(uint64_t address)
{
    return in_interrupt_range(address) || (address >= HT_BASE && address < HT_INTERRUPT) ||
           (address >= HT_SYSTEM && address < HT_SYSTEM_END) ||
           (address >= HT_PORT_IO && address < HT_PORT_IO_END);
}

/* Refused requests get a target abort (4.3); what never reaches the tables is not supported. */
void amdvi_fault(struct iemu_result *result, uint32_t diagnostic)
{
    result->diagnostic = diagnostic;
    result->fault = amdvi_fault_rows[diagnostic].code;
    result->outcome = result->fault ? IEMU_ABORTED : IEMU_UNSUPPORTED;
    result->permissions = 0;
}

/* ---- requests that are not translated ------------------------------------------------------- */

static uint32_t pass(const struct iemu_request *request, struct iemu_result *result)
{
    result->address = request->address;
    result->page_shift = 12;
    result->permissions = IEMU_READ | IEMU_WRITE;
    result->attributes = IEMU_UNTRANSLATED_PASS;
    result->domain = 0;
    return AMDVI_DIAG_NONE;
}

/* A message interrupt; any other request without PASID to its ranges is a mistake (7.1). */
static bool is_interrupt(const struct iemu_request *request)
{
    return request->access == IEMU_WRITE && request->length == 4 && request->address % 4 == 0;
}

static uint32_t pass_interrupt(const struct iemu_request *request, struct iemu_result *result)
{
    result->address = request->address;
    result->outcome = IEMU_INTERRUPT;
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

/* What a valid entry says of the other HyperTransport ranges (7.1, 7.2). */
static uint32_t ht_range(const struct iemu_request *request, const struct amdvi_dte *dte,
                         bool *translate, struct iemu_result *result)
{
    uint64_t address = request->address;

    if (address < HT_INTERRUPT)
        return request->access == IEMU_WRITE ? AMDVI_DIAG_REQUEST_INTERRUPT_RESERVED
                                             : AMDVI_DIAG_REQUEST_INTERRUPT_READ;
    if (address >= HT_SYSTEM && address < HT_SYSTEM_END)
        return system_management(request, dte, translate, result);
    if (address >= HT_PORT_IO && address < HT_PORT_IO_END)
        return port_io(request, dte, translate, result);
    *translate = true; /* no control is named for the rest: the page tables decide */
    return AMDVI_DIAG_NONE;
}

/* ---- permissions and the answer ------------------------------------------------------------- */

/* The answer that an IOTLB line, or a walk's leaf in the same form, gives. */
static uint32_t answer(const struct iemu_request *request, uint64_t leaf, unsigned shift,
                       struct iemu_result *result)
{
    result->permissions = leaf & IEMU_LEAF_PERMISSIONS;
    result->page_shift = (uint8_t)shift;
    result->attributes = leaf & IEMU_LEAF_SNOOP ? IEMU_SNOOP : 0;
    if (request->access & IEMU_WRITE & ~leaf)
        return AMDVI_DIAG_WRITE_PERMISSION;
    /* A translation request is told what is allowed, and that its range is not (8). */
    if (request->access & IEMU_READ & ~leaf &&
        !(request->at == IEMU_TRANSLATION_REQUEST && leaf & IEMU_LEAF_PERMISSIONS))
        return AMDVI_DIAG_READ_PERMISSION;
    if (request->at == IEMU_TRANSLATION_REQUEST && leaf & IEMU_LEAF_UNTRANSLATED_ONLY)
        result->attributes |= IEMU_UNTRANSLATED_ONLY;
    result->address = (leaf & ~iemu_low_mask(shift)) | (request->address & iemu_low_mask(shift));
    return AMDVI_DIAG_NONE;
}

static void fill_iotlb(struct iemu_amdvi *a, const struct iemu_request *request,
                       const struct amdvi_passage *p, uint64_t who, uint32_t domain, uint64_t leaf,
                       unsigned shift, uint32_t diagnostic)
{
    struct iemu_line *line;

    /* Nothing that grants nothing is kept, unless NpCache says so (13). */
    if (!p->use_caches || (!(leaf & IEMU_LEAF_PERMISSIONS) && !a->np_cache))
        return;
    line = iemu_cache_fill(&a->unit.cache[IEMU_CACHE_IOTLB], iemu_page_key(request->address, shift),
                           who, iemu_page_index(request->address, shift), domain);
    line->value[0] = leaf;
    line->value[1] = diagnostic;
    line->flags = p->suppress & LINE_SUPPRESS;
    iemu_trail_fill(&a->unit, IEMU_CACHE_IOTLB, line, p->trail);
}

/* Takes away what the device table entry does not grant (IR, IW). */
static uint64_t limited(uint64_t leaf, unsigned permissions)
{
    return leaf & ~(uint64_t)(IEMU_LEAF_PERMISSIONS & ~permissions);
}

static uint32_t use_line(const struct iemu_request *request, const struct iemu_line *line,
                         unsigned shift, unsigned permissions, struct iemu_result *result)
{
    result->domain = line->domain;
    if (line->value[0] & IEMU_LEAF_NEGATIVE)
        return (uint32_t)line->value[1];
    return answer(request, limited(line->value[0], permissions), shift, result);
}

/* ---- the long way --------------------------------------------------------------------------- */

/*
 * A line that is found by requester carries what its entry granted; one that is shared by a
 * domain carries the tables' permissions only, and meets each device's own entry again.
 */
static uint32_t use_leaf(struct iemu_amdvi *a, const struct iemu_request *request,
                         struct amdvi_passage *p, const struct amdvi_dte *dte, uint64_t who,
                         uint64_t leaf, unsigned shift, struct iemu_result *result)
{
    uint64_t granted = limited(leaf, DTE_PERMISSIONS(dte));

    fill_iotlb(a, request, p, who, DTE_DOMAIN(dte),
               a->unit.iotlb_lookup == IEMU_BY_DOMAIN ? leaf : granted, shift, 0);
    return answer(request, granted, shift, result);
}

static uint32_t walk_tables(struct iemu_amdvi *a, const struct iemu_request *request,
                            struct amdvi_passage *p, const struct amdvi_dte *dte, uint64_t who,
                            struct iemu_result *result)
{
    struct iemu_walk walk = {
        .unit = &a->unit,
        .trail = p->trail,
        .address = request->address,
        .table = DTE_ROOT(dte),
        .domain = DTE_DOMAIN(dte),
        .level = (uint8_t)DTE_MODE(dte),
        .use_caches = p->use_caches,
    };
    bool found;

    if (request->address & ~iemu_low_mask(iemu_level_shift(walk.level + 1u)))
        return AMDVI_DIAG_ADDRESS_WIDTH;
    found = amdvi_walk_host(&walk);
    a->unit.statistics.memory_reads += walk.reads;
    if (walk.fetch_failed) {
        p->address = walk.entry_address;
        return AMDVI_DIAG_TABLE_READ;
    }
    if (!found) {
        fill_iotlb(a, request, p, who, walk.domain, IEMU_LEAF_NEGATIVE, 12, walk.leaf.diagnostic);
        return walk.leaf.diagnostic;
    }
    return use_leaf(a, request, p, dte, who,
                    walk.leaf.address | walk.permissions |
                        (walk.leaf.attributes & IEMU_SNOOP ? IEMU_LEAF_SNOOP : 0) |
                        (walk.leaf.attributes & IEMU_UNTRANSLATED_ONLY ? IEMU_LEAF_UNTRANSLATED_ONLY
                                                                       : 0),
                    walk.leaf.shift, result);
}

/* Whether the address is in the exclusion range (3.7); whether it applies needs the entry. */
static bool in_exclusion(const struct iemu_amdvi *a, uint64_t address)
{
    uint64_t base = iemu_reg64(&a->unit.regs, AMDVI_ExclBase_AT);
    uint64_t limit = iemu_reg64(&a->unit.regs, AMDVI_ExclLimit_AT) | 0xfff;

    return base & AMDVI_MASK(ExclBase, ExEn) && address >= (base & AMDVI_MASK(ExclBase, Base)) &&
           address <= limit;
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
        iemu_trail_hit(&a->unit, IEMU_CACHE_IOTLB, line, p->trail, p->trail ? p->trail->count : 0);
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
    if (excluded(a, dte, request->address)) {
        pass(request, result);
        /* Only untranslated requests meet the range (3.7, unconfirmed). */
        if (request->at == IEMU_TRANSLATION_REQUEST)
            result->attributes = IEMU_UNTRANSLATED_ONLY;
        return AMDVI_DIAG_NONE;
    }
    /* GV counts for nothing without GTEn, which needs EFR.GTSup. */
    if (request->flags & IEMU_HAS_PASID)
        return AMDVI_DIAG_PASID;
    if ((by_domain || request->at == IEMU_TRANSLATION_REQUEST) && p->use_caches) {
        line = find_line(a, request, p, who, &shift);
        if (line)
            return use_line(request, line, shift, DTE_PERMISSIONS(dte), result);
    }
    if (DTE_MODE(dte))
        return walk_tables(a, request, p, dte, who, result);
    /* The address itself; cached by 4 KiB page under its domain, as any other translation. */
    return use_leaf(a, request, p, dte, who,
                    (request->address & ~0xfffull) | IEMU_READ | IEMU_WRITE, 12, result);
}

/* ATS (8). What it asks for may be anything but a special range. */
static uint32_t asks_for_translation(struct iemu_amdvi *a, const struct iemu_request *request,
                                     struct amdvi_passage *p, const struct amdvi_dte *dte,
                                     struct iemu_result *result)
{
    uint32_t diagnostic;

    if (!a->iotlb_sup || !DTE_V(dte) || !DTE_TV(dte) || !DTE_I(dte))
        return AMDVI_DIAG_REQUEST_TRANSLATION;
    if (!(request->flags & IEMU_HAS_PASID) && is_untranslatable(request->address))
        return AMDVI_DIAG_REQUEST_TRANSLATION_SPECIAL;
    diagnostic = translate_by(a, request, p, dte, result);
    if (!diagnostic && !(result->attributes & IEMU_SNOOP))
        result->attributes |= IEMU_NON_SNOOPED; /* N = !FC */
    return diagnostic;
}

/* The unit is on. */
static uint32_t remap(struct iemu_amdvi *a, const struct iemu_request *request,
                      struct amdvi_passage *p, struct iemu_result *result)
{
    bool plain = request->at == IEMU_UNTRANSLATED && !(request->flags & IEMU_HAS_PASID);
    bool special = plain && is_special(request->address), translate = false;
    bool interrupt_range = plain && in_interrupt_range(request->address);
    const struct iemu_line *line;
    struct amdvi_dte dte;
    uint32_t diagnostic;
    unsigned shift;

    if (plain && !special && p->use_caches && a->unit.iotlb_lookup == IEMU_BY_REQUESTER &&
        !in_exclusion(a, request->address)) {
        line = find_line(a, request, p, request->requester, &shift);
        if (line) {
            p->suppress = line->flags & LINE_SUPPRESS;
            return use_line(request, line, shift, IEMU_LEAF_PERMISSIONS, result);
        }
    }
    /* What its entry says of an interrupt needs the message's data: amdvi_remap_interrupt. */
    if (interrupt_range && is_interrupt(request))
        return pass_interrupt(request, result);
    diagnostic = amdvi_find_dte(a, request->requester, p, &dte);
    if (diagnostic)
        return diagnostic;
    result->domain = DTE_DOMAIN(&dte);
    if (request->at == IEMU_TRANSLATION_REQUEST)
        return asks_for_translation(a, request, p, &dte, result);
    /* No check beyond these (8). */
    if (request->at == IEMU_TRANSLATED)
        return a->iotlb_sup && DTE_V(&dte) && DTE_I(&dte) ? pass(request, result)
                                                           : AMDVI_DIAG_REQUEST_TRANSLATED;
    if (interrupt_range)
        return request->access == IEMU_WRITE ? AMDVI_DIAG_REQUEST_INTERRUPT_RESERVED
                                             : AMDVI_DIAG_REQUEST_INTERRUPT_READ;
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
    if (request->at == IEMU_AT_RESERVED ||
        (request->at == IEMU_TRANSLATION_REQUEST && request->access & IEMU_WRITE))
        diagnostic = AMDVI_DIAG_BAD_AT; /* pci 6 */
    else if (amdvi_control(a, AMDVI_MASK(Control, IommuEn)))
        diagnostic = remap(a, request, p, result);
    else if (request->at == IEMU_TRANSLATION_REQUEST)
        diagnostic = AMDVI_DIAG_BAD_AT; /* nobody is there to answer it */
    else if (request->at == IEMU_UNTRANSLATED && iemu_in_interrupt_range(request->address))
        diagnostic = is_interrupt(request) ? pass_interrupt(request, result)
                                           : (uint32_t)AMDVI_DIAG_NO_INTERRUPT;
    else
        diagnostic = pass(request, result);
    if (!diagnostic)
        return;
    /* To a translation request, a page fault is an answer that grants nothing (8, 10.3). */
    if (request->at == IEMU_TRANSLATION_REQUEST &&
        amdvi_fault_rows[diagnostic].code == AMDVI_IO_PAGE_FAULT)
        *result = (struct iemu_result){.domain = result->domain};
    else
        amdvi_fault(result, diagnostic);
}

/* ---- entry points --------------------------------------------------------------------------- */

static __attribute__((noinline)) void
long_way(struct iemu_amdvi *a, const struct iemu_request *request, struct iemu_result *result)
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
        iemu_likely(iemu_iotlb_hit(unit, request, result) == IEMU_HIT))
        return;
    long_way(a, request, result);
}

/* The invalidations that software owed for the change that the watch found (9.2, 13). */
static uint32_t owed(struct iemu_unit *unit, const struct iemu_stale_use *use)
{
    uint16_t requester = use->request.requester;
    const struct iemu_line *line;

    if (use->level == IEMU_LEVEL_UNKNOWN)
        return IEMU_OWED_IOTLB_DOMAIN;
    if (use->level < IEMU_LEVEL_CONTEXT)
        return IEMU_OWED_IOTLB_PAGE;
    if (use->level == IEMU_LEVEL_REGISTER)
        return IEMU_OWED_CONTEXT_GLOBAL | IEMU_OWED_IOTLB_GLOBAL;
    /* The entry may have been invalidated already while the translations were not. */
    line = iemu_cache_probe(&unit->cache[IEMU_CACHE_CONTEXT], 0, requester, requester);
    if (!line || !iemu_watch_still_stale(unit, IEMU_CACHE_CONTEXT, line, use))
        return IEMU_OWED_IOTLB_DOMAIN;
    return IEMU_OWED_CONTEXT_DEVICE | IEMU_OWED_IOTLB_DOMAIN;
}

void amdvi_translate_watched(struct iemu_unit *unit, const struct iemu_request *request,
                             struct iemu_result *result)
{
    struct iemu_amdvi *a = amdvi_of(unit);
    struct iemu_trail used = {0}, now = {0};
    struct amdvi_passage p = {.trail = &used, .use_caches = true}, q = {.trail = &now};
    struct iemu_second_look before;
    struct iemu_result fresh;

    resolve(a, request, &p, result);
    before = iemu_watch_begin(unit);
    resolve(a, request, &q, &fresh);
    iemu_watch_end(unit, before);
    iemu_watch_compare(unit, request, result, &used, &fresh, &now, owed);
    unit->watch->last = used;
    if (result->diagnostic)
        result->recorded = amdvi_report(a, request, result->diagnostic, result->domain, &p);
}

void amdvi_look_again(struct iemu_unit *unit, const struct iemu_request *request,
                      struct iemu_result *result, struct iemu_trail *trail)
{
    struct amdvi_passage p = {.trail = trail};

    resolve(amdvi_of(unit), request, &p, result);
}

void amdvi_update_quick(struct iemu_amdvi *a)
{
    uint64_t exclusion = iemu_reg64(&a->unit.regs, AMDVI_ExclBase_AT);

    a->quick = amdvi_control(a, AMDVI_MASK(Control, IommuEn)) &&
               !(exclusion & AMDVI_MASK(ExclBase, ExEn)) &&
               a->unit.iotlb_lookup == IEMU_BY_REQUESTER;
}
