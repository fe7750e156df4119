/* Interrupt remapping (fact sheet 10), remapped format; posting needs CAP.PI, which is refused. */
#include "vtd.h"

#define ADDRESS_REMAPPABLE (1u << 4)
#define ADDRESS_SHV        (1u << 3)

#define IRTE_P   1ull
#define IRTE_FPD 2ull

struct irte {
    uint64_t low;
    uint64_t high;
};

static bool extended_mode(const struct iemu_vtd *v)
{
    return v->interrupt_table & VTD_MASK(IRTA, EIME);
}

static bool source_allowed(const struct irte *entry, uint16_t requester)
{
    uint16_t sid = (uint16_t)entry->high;
    unsigned qualifier = entry->high >> 16 & 3, bus = requester >> 8;

    switch (entry->high >> 18 & 3) {
    case 0:
        return true;
    case 1:
        return !((sid ^ requester) & ~vtd_ignored_functions[qualifier] & 0xffff);
    default: /* bus range; 11 is a reserved value, found later (10.2 step 4) */
        return (entry->high >> 18 & 3) == 3 || (bus >= sid >> 8 && bus <= (sid & 0xff));
    }
}

static bool reserved_set(const struct iemu_vtd *v, const struct irte *entry)
{
    unsigned delivery = entry->low >> 5 & 7;
    /* 14:12, 15 (IM without posting), 31:24; DST outside 47:40 unless extended (10.3). */
    uint64_t reserved = 0xff00f000ull | (extended_mode(v) ? 0 : 0xffff00ff00000000ull);

    return entry->low & reserved || entry->high >> 20 || (entry->high >> 18 & 3) == 3 ||
           delivery == 3 || delivery == 6;
}

/* Message address and data that an entry stands for; the level bit is always "asserted". */
static void compose(const struct iemu_vtd *v, const struct irte *entry, uint64_t *address,
                    uint32_t *data)
{
    uint32_t destination = (uint32_t)(entry->low >> 32);
    uint64_t low = IEMU_INTERRUPT_BASE | (entry->low >> 3 & 1) << 3 | (entry->low >> 2 & 1) << 2;

    if (extended_mode(v))
        *address = (uint64_t)(destination & 0xffffff00) << 32 | low | (destination & 0xff) << 12;
    else
        *address = low | (destination >> 8 & 0xff) << 12;
    *data = (uint32_t)(entry->low >> 16 & 0xff) | (uint32_t)(entry->low >> 5 & 7) << 8 | 1u << 14 |
            (uint32_t)(entry->low >> 4 & 1) << 15;
}

/* One way through the remapper: from an interrupt request to the message, or to a fault. */
struct remapping {
    uint64_t address;
    uint32_t data;
    uint32_t index;
    bool suppress;   /* FPD of the entry */
    bool use_caches; /* false: only the table counts, and nothing is filled */
    bool cached;     /* the entry came from the cache */
    uint64_t entry_address;
    struct irte entry;
};

static uint32_t read_entry(struct iemu_vtd *v, struct remapping *r)
{
    uint64_t table = v->interrupt_table & VTD_MASK(IRTA, IRTA), raw[2];

    r->entry_address = table + 16ull * r->index;
    if ((table | r->entry_address) & v->address_reserved)
        return VTD_DIAG_IR_21_ADDRESS;
    v->unit.statistics.memory_reads++;
    if (!iemu_fetch_entry(&v->unit.machine->memory, r->entry_address, raw, 2,
                          v->unit.granule_words))
        return VTD_DIAG_IR_23;
    r->entry = (struct irte){raw[0], raw[1]};
    return VTD_DIAG_NONE;
}

static uint32_t find_entry(struct iemu_vtd *v, struct remapping *r)
{
    struct iemu_cache *cache = &v->unit.cache[IEMU_CACHE_INTERRUPT];
    const struct iemu_line *line =
        r->use_caches ? iemu_cache_lookup(cache, 0, r->index, r->index) : NULL;

    if (!line)
        return read_entry(v, r);
    r->cached = true;
    r->entry = (struct irte){line->value[0], line->value[1]};
    return VTD_DIAG_NONE;
}

static uint32_t check_entry(const struct iemu_vtd *v, const struct iemu_request *request,
                            const struct irte *entry)
{
    if (!(entry->low & IRTE_P))
        return VTD_DIAG_IR_22;
    if (!source_allowed(entry, request->requester))
        return VTD_DIAG_IR_26;
    return reserved_set(v, entry) ? VTD_DIAG_IR_24 : VTD_DIAG_NONE;
}

/* Entries that are not present or faulty are cached only where caching mode says so (9.5). */
static void cache_entry(struct iemu_vtd *v, const struct remapping *r)
{
    struct iemu_line *line;

    if (!r->use_caches || r->cached ||
        ((!(r->entry.low & IRTE_P) || reserved_set(v, &r->entry)) && !VTD_GET(CAP, CM, v->cap)))
        return;
    line = iemu_cache_fill(&v->unit.cache[IEMU_CACHE_INTERRUPT], 0, r->index, r->index, 0);
    line->value[0] = r->entry.low;
    line->value[1] = r->entry.high;
}

static uint32_t remap(struct iemu_vtd *v, const struct iemu_request *request, struct remapping *r)
{
    uint32_t diagnostic, low = (uint32_t)r->address;

    if (!vtd_status(v, VTD_MASK(GSTS, IRES)))
        /* Otherwise both formats pass as compatibility format (10.2 step 1). */
        return VTD_GET(ECAP, IRREQ, v->ecap) ? VTD_DIAG_IR_2B : VTD_DIAG_NONE;
    if (VTD_GET(ECAP, EIMER, v->ecap) && !extended_mode(v))
        return VTD_DIAG_IR_2A;
    if (!(low & ADDRESS_REMAPPABLE)) {
        if (extended_mode(v) || !vtd_status(v, VTD_MASK(GSTS, CFIS)))
            return VTD_DIAG_IR_25;
        return VTD_DIAG_NONE;
    }
    r->index = (low >> 5 & 0x7fff) | (low >> 2 & 1) << 15;
    if (low & ADDRESS_SHV) {
        if (r->data >> 16)
            return VTD_DIAG_IR_20;
        r->index += r->data & 0xffff; /* compared as it is, not cut to 16 bits (10.1) */
    }
    if (r->index >= 2u << VTD_GET(IRTA, S, v->interrupt_table))
        return VTD_DIAG_IR_21_INDEX;
    diagnostic = find_entry(v, r);
    if (diagnostic)
        return diagnostic;
    cache_entry(v, r);
    r->suppress = r->entry.low & IRTE_FPD;
    diagnostic = check_entry(v, request, &r->entry);
    if (!diagnostic)
        compose(v, &r->entry, &r->address, &r->data);
    return diagnostic;
}

static struct iemu_result result_of(uint32_t diagnostic, uint64_t address)
{
    return (struct iemu_result){
        .address = address,
        .outcome = diagnostic ? IEMU_UNSUPPORTED : IEMU_INTERRUPT,
        .diagnostic = diagnostic,
        .fault = vtd_fault_rows[diagnostic].code,
    };
}

/* The stale-use detector for interrupts: the same request again, by the table alone. */
static void compare_with_table(struct iemu_vtd *v, const struct iemu_request *request,
                               const struct remapping *used, uint32_t diagnostic,
                               struct remapping *fresh)
{
    struct iemu_second_look before = iemu_watch_begin(&v->unit);
    uint32_t now = remap(v, request, fresh);
    struct iemu_stale_use use;
    unsigned word;

    iemu_watch_end(&v->unit, before);
    if (!used->cached || (vtd_fault_rows[now].code == vtd_fault_rows[diagnostic].code &&
                          used->address == fresh->address && used->data == fresh->data))
        return;
    word = used->entry.low == fresh->entry.low;
    use = (struct iemu_stale_use){
        .request = *request,
        .cached = result_of(diagnostic, used->address),
        .fresh = result_of(now, fresh->address),
        .entry = fresh->entry_address + 8 * word,
        .before = word ? used->entry.high : used->entry.low,
        .after = word ? fresh->entry.high : fresh->entry.low,
        .owed = IEMU_OWED_INTERRUPT,
        .cache = IEMU_CACHE_INTERRUPT,
        .level = IEMU_LEVEL_INTERRUPT,
    };
    iemu_watch_report(&v->unit, &use);
}

void vtd_remap_interrupt(struct iemu_unit *unit, const struct iemu_request *request,
                         uint64_t *address, uint32_t *data, struct iemu_result *result)
{
    struct iemu_vtd *v = vtd_of(unit);
    struct remapping r = {.address = *address, .data = *data, .use_caches = true};
    struct remapping fresh = {.address = *address, .data = *data};
    uint32_t diagnostic = remap(v, request, &r);
    bool has_index;

    if (unit->watch)
        compare_with_table(v, request, &r, diagnostic, &fresh);
    *address = r.address;
    *data = r.data;
    if (!diagnostic)
        return;
    /* Fault information is the index, or undefined, here 0 (2.10). */
    has_index = diagnostic != VTD_DIAG_IR_20 && diagnostic != VTD_DIAG_IR_25 &&
                diagnostic != VTD_DIAG_IR_2A && diagnostic != VTD_DIAG_IR_2B;
    result->outcome = IEMU_UNSUPPORTED;
    result->diagnostic = diagnostic;
    result->fault = vtd_fault_rows[diagnostic].code;
    result->recorded = vtd_record_fault(v, request, diagnostic,
                                        has_index ? (uint64_t)r.index << 48 : 0, r.suppress);
}

bool vtd_drain_interrupts(struct iemu_vtd *v)
{
    const struct iemu_drain drain = {
        .unit = &v->unit,
        .first = IEMU_INTERRUPT_BASE,
        .last = IEMU_INTERRUPT_BASE + IEMU_INTERRUPT_SIZE - 1,
        .any_domain = true,
        .writes = true,
    };

    return iemu_dma_drain(v->unit.machine, &drain);
}
