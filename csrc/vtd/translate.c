/*
 * One request through a VT-d unit in legacy mode: order of checks of the fact sheet's 8.3.
 * A hit is one probe of the IOTLB; everything else is the long way.
 */
#include "../hit.h"
#include "context.h"
#include "walk.h"

/* Flags of an IOTLB line: what of its context entry outlives it here. */
enum line_flag {
    LINE_FPD = 1,
    LINE_PASS_THROUGH = 2,
};

/* ---- faults ------------------------------------------------------------------------------- */

static void fault(struct iemu_result *result, const struct iemu_request *request,
                  uint32_t diagnostic)
{
    const struct vtd_fault_row *row = &vtd_fault_rows[diagnostic];
    uint8_t answer =
        request->at == IEMU_TRANSLATION_REQUEST ? row->translation_request : VTD_ANSWER_UR;

    /* A completion that grants nothing is no fault (6.2); what is granted never comes here. */
    if (answer == VTD_ANSWER_ZERO || answer == VTD_ANSWER_EFFECTIVE) {
        *result = (struct iemu_result){.domain = result->domain};
        return;
    }
    result->diagnostic = diagnostic;
    result->fault = row->code;
    result->permissions = 0;
    result->outcome = answer == VTD_ANSWER_CA ? IEMU_ABORTED : IEMU_UNSUPPORTED;
}

/* NW counts where ECAP.NWFS says so (5.8). */
static bool asks_not_to_write(const struct iemu_vtd *v, const struct iemu_request *request)
{
    return request->flags & IEMU_NO_WRITE && VTD_GET(ECAP, NWFS, v->ecap);
}

/* ---- permissions and the answer -------------------------------------------------------------- */

/* LGN.2 before LGN.3 for an AtomicOp that lacks both (unconfirmed in 8.3). */
ALWAYS_INLINE uint32_t missing_permission(const struct iemu_vtd *v,
                                          const struct iemu_request *request, unsigned permissions,
                                          bool present)
{
    if (iemu_likely(!(request->access & ~permissions)))
        return VTD_DIAG_NONE;
    if (request->access & IEMU_WRITE & ~permissions)
        return present ? VTD_DIAG_LGN_2_PERMISSION : VTD_DIAG_LGN_2_NOT_PRESENT;
    if (request->access & IEMU_READ & ~permissions) {
        /* Zero-length read: a write-only page is enough if CAP.ZLR (5.5). */
        if (request->flags & IEMU_ZERO_LENGTH && request->at == IEMU_UNTRANSLATED &&
            VTD_GET(CAP, ZLR, v->cap) && permissions & IEMU_WRITE)
            return VTD_DIAG_NONE;
        /* The completion says what is allowed; only where that is nothing there is none (6.2). */
        if (request->at == IEMU_TRANSLATION_REQUEST && permissions & IEMU_WRITE &&
            !asks_not_to_write(v, request))
            return VTD_DIAG_NONE;
        return present ? VTD_DIAG_LGN_3_PERMISSION : VTD_DIAG_LGN_3_NOT_PRESENT;
    }
    return VTD_DIAG_NONE;
}

/* The answer that an IOTLB line, or a walk's leaf in the same form, gives. */
ALWAYS_INLINE uint32_t answer(const struct iemu_vtd *v, const struct iemu_request *request,
                              uint64_t leaf, unsigned shift, struct iemu_result *result)
{
    uint32_t diagnostic;

    result->address = iemu_page_join(leaf, request->address, shift);
    result->permissions = leaf & IEMU_LEAF_PERMISSIONS;
    result->page_shift = (uint8_t)shift;
    result->attributes = leaf & IEMU_LEAF_SNOOP ? IEMU_SNOOP : 0;
    diagnostic = missing_permission(v, request, result->permissions, true);
    if (diagnostic)
        return diagnostic;
    /* Checked last (8.3 step 10); no line covers the range, so hits never come here with it. */
    if (iemu_in_interrupt_range(result->address))
        return VTD_DIAG_LGN_4;
    return VTD_DIAG_NONE;
}

/*
 * A large page that shares bytes with the interrupt range is used as the 4 KiB fragment that the
 * request is in (9.6 allows fragments): so a hit need not check its output.
 */
ALWAYS_INLINE void fragment(const struct iemu_request *request, uint64_t *leaf, unsigned *shift)
{
    uint64_t first, last;

    if (iemu_likely(*shift == 12))
        return;
    first = *leaf & ~iemu_low_mask(*shift);
    last = first | iemu_low_mask(*shift);
    if (first >= IEMU_INTERRUPT_BASE + IEMU_INTERRUPT_SIZE || last < IEMU_INTERRUPT_BASE)
        return;
    *leaf |= request->address & iemu_low_mask(*shift) & ~0xfffull;
    *shift = 12;
}

ALWAYS_INLINE void fill_iotlb(struct iemu_vtd *v, const struct iemu_request *request,
                              const struct passage *p, uint64_t who, uint32_t domain, uint64_t leaf,
                              unsigned shift, uint32_t diagnostic, uint32_t flags)
{
    struct iemu_line *line;

    if (!p->use_caches)
        return;
    line = iemu_cache_fill(&v->unit.cache[IEMU_CACHE_IOTLB], iemu_page_key(request->address, shift),
                           who, iemu_page_index(request->address, shift), domain);
    line->value[0] = leaf;
    if (diagnostic)
        line->value[1] = diagnostic;
    line->flags = flags | (p->suppress ? LINE_FPD : 0);
    iemu_trail_fill(&v->unit, IEMU_CACHE_IOTLB, line, p->trail);
}

/* Not-present and reserved-bit faults that CM=1 may cache (9.5). */
ALWAYS_INLINE void fill_negative(struct iemu_vtd *v, const struct iemu_request *request,
                                 const struct passage *p, uint64_t who, uint32_t domain,
                                 uint32_t diagnostic)
{
    if (VTD_GET(CAP, CM, v->cap))
        fill_iotlb(v, request, p, who, domain, IEMU_LEAF_NEGATIVE, 12, diagnostic, 0);
}

ALWAYS_INLINE uint32_t use_line(const struct iemu_vtd *v, const struct iemu_request *request,
                                const struct iemu_line *line, unsigned shift,
                                struct iemu_result *result)
{
    result->domain = line->domain;
    if (iemu_unlikely(line->value[0] & IEMU_LEAF_NEGATIVE)) {
        uint32_t diagnostic = (uint32_t)line->value[1];

        /* Not present: which code depends on this access, not on the one that filled it. */
        if (diagnostic == VTD_DIAG_LGN_2_NOT_PRESENT || diagnostic == VTD_DIAG_LGN_3_NOT_PRESENT)
            diagnostic = missing_permission(v, request, 0, false);
        return diagnostic;
    }
    return answer(v, request, line->value[0], shift, result);
}

/* ---- the long way ---------------------------------------------------------------------------- */

static bool overlaps(const uint64_t region[2], uint64_t first, uint64_t last)
{
    return region[0] <= region[1] && first <= region[1] && last >= region[0];
}

static bool is_protected(const struct iemu_vtd *v, uint64_t address, uint32_t length)
{
    uint64_t last = address + (length ? length - 1 : 0);

    return v->protect && (overlaps(v->protected_low, address, last) ||
                          overlaps(v->protected_high, address, last));
}

/* Untranslated, without PASID, in the interrupt range: never page-walked (5.4). */
static uint32_t interrupt_range(const struct iemu_request *request, struct iemu_result *result)
{
    result->address = request->address;
    if (request->access == IEMU_WRITE && request->length == 4 && request->address % 4 == 0) {
        result->outcome = IEMU_INTERRUPT;
        return VTD_DIAG_NONE;
    }
    if (request->flags & IEMU_ZERO_LENGTH && request->access == IEMU_READ) {
        result->outcome = IEMU_DISCARDED;
        return VTD_DIAG_NONE;
    }
    return VTD_DIAG_IR_29;
}

/*
 * A translation request for the interrupt range, S.1 and S.2 of 8.4: messages are written
 * untranslated.
 */
static void translate_interrupt_range(const struct iemu_vtd *v, const struct iemu_request *request,
                                      struct iemu_result *result)
{
    if (asks_not_to_write(v, request))
        return;
    result->address = request->address;
    result->page_shift = 12;
    result->permissions = IEMU_WRITE;
    result->attributes = IEMU_UNTRANSLATED_ONLY;
}

/* What a completion says beside the translation (6.2). */
static void complete_translation(const struct iemu_vtd *v, const struct iemu_request *request,
                                 struct iemu_result *result)
{
    if (asks_not_to_write(v, request))
        result->permissions &= ~IEMU_WRITE;
    if (result->attributes & IEMU_SNOOP)
        result->attributes |= IEMU_NON_SNOOPED;
}

ALWAYS_INLINE void pass(const struct iemu_request *request, struct iemu_result *result)
{
    result->address = request->address;
    result->page_shift = 12;
    result->permissions = IEMU_READ | IEMU_WRITE;
    result->attributes = IEMU_UNTRANSLATED_PASS;
}

static uint32_t check_mode(const struct iemu_vtd *v, const struct iemu_request *request)
{
    switch (VTD_GET(RTADDR, TTM, v->root)) {
    case 0:
        return request->flags & IEMU_HAS_PASID ? VTD_DIAG_RTA_2 : VTD_DIAG_NONE;
    case 1:
        return VTD_DIAG_RTA_1_3;
    case 2:
        return VTD_DIAG_RTA_1_2;
    default:
        return VTD_DIAG_RTA_1_1;
    }
}

ALWAYS_INLINE uint32_t walk_tables(struct iemu_vtd *v, const struct iemu_request *request,
                                   struct passage *p, const struct context *c, uint64_t who,
                                   struct iemu_result *result)
{
    unsigned levels = CONTEXT_AW(c->high) + 2, shift;
    unsigned width = 12 + 9 * levels;
    uint32_t domain = CONTEXT_DID(c->high), diagnostic;
    uint64_t leaf;
    struct iemu_walk walk = {
        .unit = &v->unit,
        .trail = p->trail,
        .address = request->address,
        .table = c->low & ENTRY_POINTER,
        .domain = domain,
        .level = (uint8_t)levels,
        .use_caches = p->use_caches,
    };

    if (width > v->guest_width)
        width = v->guest_width;
    if (request->address & ~iemu_low_mask(width))
        return VTD_DIAG_LGN_1_1;
    if (!vtd_walk_second_stage(&walk)) {
        v->unit.statistics.memory_reads += walk.reads;
        if (walk.fetch_failed)
            return walk.at_root ? VTD_DIAG_LCT_4_3 : VTD_DIAG_LSS_1;
        diagnostic = walk.leaf.diagnostic ? walk.leaf.diagnostic
                                          : missing_permission(v, request, 0, false);
        fill_negative(v, request, p, who, domain, diagnostic);
        return diagnostic;
    }
    v->unit.statistics.memory_reads += walk.reads;
    leaf = walk.leaf.address | walk.permissions |
           (walk.leaf.attributes & IEMU_SNOOP ? IEMU_LEAF_SNOOP : 0);
    shift = walk.leaf.shift;
    fragment(request, &leaf, &shift);
    diagnostic = answer(v, request, leaf, shift, result);
    /*
     * A page without this permission is still a translation. One without any is as good as not
     * present (8.2, 79h), one to FEEx_xxxxh is a fault, whatever was missing first.
     */
    if (!iemu_in_interrupt_range(result->address) &&
        (walk.permissions || VTD_GET(CAP, CM, v->cap)))
        fill_iotlb(v, request, p, who, domain, leaf, shift, 0, 0);
    return diagnostic;
}

/* Pass-through is cached by 4 KiB page under its domain, as any other translation. */
ALWAYS_INLINE uint32_t pass_through(struct iemu_vtd *v, const struct iemu_request *request,
                                    struct passage *p, const struct context *c, uint64_t who,
                                    struct iemu_result *result)
{
    uint64_t leaf;

    if (request->address & v->address_reserved)
        return VTD_DIAG_LGN_1_3;
    leaf = (request->address & ~0xfffull) | IEMU_READ | IEMU_WRITE;
    fill_iotlb(v, request, p, who, CONTEXT_DID(c->high), leaf, 12, 0, LINE_PASS_THROUGH);
    return answer(v, request, leaf, 12, result);
}

ALWAYS_INLINE uint32_t translated_request(const struct iemu_vtd *v,
                                          const struct iemu_request *request,
                                          struct iemu_result *result)
{
    if (request->address & v->address_reserved)
        return VTD_DIAG_LGN_1_2;
    if (iemu_in_interrupt_range(request->address))
        return VTD_DIAG_LGN_4;
    pass(request, result);
    return VTD_DIAG_NONE;
}

/* What the IOTLB does not know: context entry, then page tables. */
ALWAYS_INLINE uint32_t look_up(struct iemu_vtd *v, const struct iemu_request *request,
                               struct passage *p, bool by_domain, struct iemu_result *result)
{
    struct iemu_cache *iotlb = &v->unit.cache[IEMU_CACHE_IOTLB];
    uint64_t who = request->requester;
    struct iemu_line *line;
    struct context c;
    unsigned shift, type;
    uint32_t diagnostic = find_context(v, request, p, &c);

    if (iemu_unlikely(diagnostic))
        return diagnostic;
    type = CONTEXT_TT(c.low);
    result->domain = CONTEXT_DID(c.high);
    /* Whether the request class is allowed at all needs the context entry (5.2). */
    if (request->at != IEMU_UNTRANSLATED && type != TT_SECOND_STAGE_ATS)
        return VTD_DIAG_LCT_5;
    p->walked = type != TT_PASS_THROUGH && request->at != IEMU_TRANSLATED;
    if (request->at == IEMU_TRANSLATED)
        return translated_request(v, request, result);
    if (by_domain)
        who = result->domain;
    if (p->use_caches && (by_domain || request->at != IEMU_UNTRANSLATED)) {
        line = iemu_cache_find(iotlb, request->address, who, &shift);
        if (line) {
            iemu_trail_hit(&v->unit, IEMU_CACHE_IOTLB, line, p->trail,
                           p->trail ? p->trail->count : 0);
            return use_line(v, request, line, shift, result);
        }
    }
    if (type == TT_PASS_THROUGH)
        return pass_through(v, request, p, &c, who, result);
    return walk_tables(v, request, p, &c, who, result);
}

/* Translation enabled, outside the interrupt range: tables and caches. */
static uint32_t remap(struct iemu_vtd *v, const struct iemu_request *request, struct passage *p,
                      struct iemu_result *result)
{
    bool by_domain = v->unit.iotlb_lookup == IEMU_BY_DOMAIN;
    struct iemu_line *line;
    unsigned shift;

    if (p->use_caches && !by_domain && request->at == IEMU_UNTRANSLATED) {
        line = iemu_cache_find(&v->unit.cache[IEMU_CACHE_IOTLB], request->address,
                               request->requester, &shift);
        if (line) {
            iemu_trail_hit(&v->unit, IEMU_CACHE_IOTLB, line, p->trail, 0);
            /* The line stands for its context entry as well. */
            p->suppress = line->flags & LINE_FPD;
            p->walked = !(line->flags & LINE_PASS_THROUGH);
            return use_line(v, request, line, shift, result);
        }
    }
    return look_up(v, request, p, by_domain, result);
}

/* Decides one request; fills caches as `p` says, records nothing. */
static void resolve(struct iemu_vtd *v, const struct iemu_request *request, struct passage *p,
                    struct iemu_result *result)
{
    uint32_t diagnostic = VTD_DIAG_NONE;

    *result = (struct iemu_result){0};
    if (request->at == IEMU_AT_RESERVED ||
        (request->at == IEMU_TRANSLATION_REQUEST && request->access & IEMU_WRITE)) {
        diagnostic = VTD_DIAG_BAD_AT; /* 6.1 */
    } else if (!vtd_status(v, VTD_MASK(GSTS, TES))) {
        /* Requests pass, but nothing that speaks ATS does (5.1); the range still interrupts. */
        if (request->at != IEMU_UNTRANSLATED)
            diagnostic = VTD_DIAG_BAD_AT;
        else if (iemu_in_interrupt_range(request->address))
            diagnostic = interrupt_range(request, result);
        else
            pass(request, result);
    } else if (request->at == IEMU_UNTRANSLATED && !(request->flags & IEMU_HAS_PASID) &&
               iemu_in_interrupt_range(request->address)) {
        diagnostic = interrupt_range(request, result);
    } else if (request->at == IEMU_TRANSLATION_REQUEST && !(request->flags & IEMU_HAS_PASID) &&
               iemu_in_interrupt_range(request->address)) {
        translate_interrupt_range(v, request, result);
        return;
    } else {
        diagnostic = check_mode(v, request);
        if (!diagnostic)
            diagnostic = remap(v, request, p, result);
    }
    /*
     * Protected regions: older units exempt what went through page tables (2.11). A translation
     * is no access: the translated request is what meets them.
     */
    if (!diagnostic && result->outcome == IEMU_MEMORY && (!p->walked || v->major >= 2) &&
        request->at != IEMU_TRANSLATION_REQUEST &&
        is_protected(v, result->address, request->length))
        diagnostic = VTD_DIAG_PROTECTED;
    if (diagnostic)
        fault(result, request, diagnostic);
    else if (request->at == IEMU_TRANSLATION_REQUEST)
        complete_translation(v, request, result);
}

/* ---- entry points ---------------------------------------------------------------------------- */

static void record(struct iemu_vtd *v, const struct iemu_request *request, bool suppress,
                   struct iemu_result *result)
{
    /* With translation and remapping off nothing is reported (choice: 5.1 is silent). */
    if (result->diagnostic && vtd_status(v, VTD_MASK(GSTS, TES) | VTD_MASK(GSTS, IRES)))
        result->recorded = vtd_record_fault(v, request, result->diagnostic,
                                            request->address & v->recorded_address, suppress);
}

static __attribute__((noinline)) void long_way(struct iemu_vtd *v,
                                               const struct iemu_request *request,
                                               struct iemu_result *result)
{
    struct passage p = {.use_caches = true};

    resolve(v, request, &p, result);
    if (iemu_unlikely(result->diagnostic))
        record(v, request, p.suppress, result);
}

/* The end of the long way, for a quick request that the IOTLB does not know. */
static __attribute__((noinline)) void miss(struct iemu_vtd *v, const struct iemu_request *request,
                                           struct iemu_result *result)
{
    struct passage p = {.use_caches = true};
    struct iemu_result found = {0};
    uint32_t diagnostic;

    v->unit.cache[IEMU_CACHE_IOTLB].misses++;
    diagnostic = look_up(v, request, &p, false, &found);
    /* Member by member, so that it never exists in memory: it would be read before it is there. */
    result->address = found.address;
    result->diagnostic = 0;
    result->outcome = found.outcome;
    result->page_shift = found.page_shift;
    result->permissions = found.permissions;
    result->attributes = found.attributes;
    result->domain = found.domain;
    result->fault = 0;
    result->recorded = 0;
    if (iemu_unlikely(diagnostic)) {
        fault(result, request, diagnostic);
        record(v, request, p.suppress, result);
    }
}

void vtd_translate(struct iemu_unit *unit, const struct iemu_request *request,
                   struct iemu_result *result)
{
    struct iemu_vtd *v = vtd_of(unit);
    const uint32_t unusual = IEMU_HAS_PASID | IEMU_ZERO_LENGTH;
    enum iemu_hit hit = IEMU_REFUSED;

    if (iemu_likely(v->quick && !(request->at | (request->flags & unusual)) &&
                    !iemu_in_interrupt_range(request->address)))
        hit = iemu_iotlb_hit(unit, request, result);
    if (iemu_likely(hit == IEMU_HIT))
        return;
    /* Missing permission or a cached fault: decided once, in the long way. */
    if (hit == IEMU_MISS)
        miss(v, request, result);
    else
        long_way(v, request, result);
}

/* The invalidations that software owed for the change that the watch found (9.4). */
static uint32_t owed(struct iemu_unit *unit, const struct iemu_stale_use *use)
{
    uint32_t context = use->level == IEMU_LEVEL_CONTEXT ? IEMU_OWED_CONTEXT_DEVICE
                                                        : IEMU_OWED_CONTEXT_GLOBAL;
    const struct iemu_line *line;

    if (use->level && use->level < IEMU_LEVEL_CONTEXT)
        return VTD_GET(CAP, PSI, vtd_of(unit)->cap) ? IEMU_OWED_IOTLB_PAGE
                                                    : IEMU_OWED_IOTLB_DOMAIN;
    if (use->level == IEMU_LEVEL_UNKNOWN)
        return IEMU_OWED_IOTLB_DOMAIN;
    /* The context cache may be clean already while the IOTLB is not. */
    line = iemu_cache_probe(&unit->cache[IEMU_CACHE_CONTEXT], 0, use->request.requester,
                            use->request.requester);
    if (use->cache == IEMU_CACHE_IOTLB &&
        (!line || !iemu_watch_still_stale(unit, IEMU_CACHE_CONTEXT, line, use)))
        context = 0;
    return context | (use->level == IEMU_LEVEL_CONTEXT ? IEMU_OWED_IOTLB_DOMAIN
                                                       : IEMU_OWED_IOTLB_GLOBAL);
}

void vtd_translate_watched(struct iemu_unit *unit, const struct iemu_request *request,
                           struct iemu_result *result)
{
    struct iemu_vtd *v = vtd_of(unit);
    struct iemu_trail used = {0}, now = {0};
    struct passage p = {.trail = &used, .use_caches = true}, q = {.trail = &now};
    struct iemu_second_look before;
    struct iemu_result fresh;

    resolve(v, request, &p, result);
    before = iemu_watch_begin(unit);
    resolve(v, request, &q, &fresh);
    iemu_watch_end(unit, before);
    iemu_watch_compare(unit, request, result, &used, &fresh, &now, owed);
    unit->watch->last = used;
    record(v, request, p.suppress, result);
}

void vtd_look_again(struct iemu_unit *unit, const struct iemu_request *request,
                    struct iemu_result *result, struct iemu_trail *trail)
{
    struct passage p = {.trail = trail};

    resolve(vtd_of(unit), request, &p, result);
}

void vtd_update_quick(struct iemu_vtd *v)
{
    v->quick = vtd_status(v, VTD_MASK(GSTS, TES)) && !VTD_GET(RTADDR, TTM, v->root) &&
               !v->protect && v->unit.iotlb_lookup == IEMU_BY_REQUESTER;
}

void vtd_describe(struct iemu_unit *unit, uint32_t cache, const struct iemu_tag *tag,
                  const struct iemu_line *line, struct iemu_cache_entry *entry)
{
    if (cache != IEMU_CACHE_INTERRUPT) {
        iemu_describe_line(unit, cache, tag, line, entry);
        return;
    }
    entry->address = iemu_tag_who(tag); /* interrupt index */
    entry->output = line->value[0];
}
