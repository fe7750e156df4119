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

static uint32_t find_entry(struct iemu_vtd *v, uint32_t index, struct irte *entry)
{
    struct iemu_cache *cache = &v->unit.cache[IEMU_CACHE_INTERRUPT];
    struct iemu_line *line = iemu_cache_probe(cache, 0, index, index);
    uint64_t address = (v->interrupt_table & VTD_MASK(IRTA, IRTA)) + 16ull * index, raw[2];

    if (line) {
        line->used = ++cache->tick;
        *entry = (struct irte){line->value[0], line->value[1]};
        return VTD_DIAG_NONE;
    }
    cache->misses++;
    if (address & v->address_reserved)
        return VTD_DIAG_IR_21_ADDRESS;
    v->statistics.memory_reads++;
    if (!iemu_fetch_entry(&v->unit.machine->memory, address, raw, 2, v->unit.granule_words))
        return VTD_DIAG_IR_23;
    *entry = (struct irte){raw[0], raw[1]};
    /* Not-present entries only where caching mode says so (9.5). */
    if (raw[0] & IRTE_P || VTD_GET(CAP, CM, v->cap)) {
        line = iemu_cache_fill(cache, 0, index, index, 0);
        line->value[0] = raw[0];
        line->value[1] = raw[1];
        line->flags = 0;
    }
    return VTD_DIAG_NONE;
}

static bool source_allowed(const struct irte *entry, uint16_t requester)
{
    static const uint16_t ignored[4] = {0, 4, 6, 7};
    uint16_t sid = (uint16_t)entry->high;
    unsigned qualifier = entry->high >> 16 & 3, bus = requester >> 8;

    switch (entry->high >> 18 & 3) {
    case 0:
        return true;
    case 1:
        return !((sid ^ requester) & ~ignored[qualifier] & 0xffff);
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

static uint32_t remap(struct iemu_vtd *v, const struct iemu_request *request, uint64_t *address,
                      uint32_t *data, uint32_t *index, bool *suppress)
{
    struct irte entry;
    uint32_t diagnostic, low = (uint32_t)*address;

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
    *index = (low >> 5 & 0x7fff) | (low >> 2 & 1) << 15;
    if (low & ADDRESS_SHV) {
        if (*data >> 16)
            return VTD_DIAG_IR_20;
        *index += *data & 0xffff; /* compared as it is, not cut to 16 bits (10.1) */
    }
    if (*index >= 2u << VTD_GET(IRTA, S, v->interrupt_table))
        return VTD_DIAG_IR_21_INDEX;
    diagnostic = find_entry(v, *index, &entry);
    if (diagnostic)
        return diagnostic;
    *suppress = entry.low & IRTE_FPD;
    if (!(entry.low & IRTE_P))
        return VTD_DIAG_IR_22;
    if (!source_allowed(&entry, request->requester))
        return VTD_DIAG_IR_26;
    if (reserved_set(v, &entry))
        return VTD_DIAG_IR_24;
    compose(v, &entry, address, data);
    return VTD_DIAG_NONE;
}

void vtd_remap_interrupt(struct iemu_unit *unit, const struct iemu_request *request,
                         uint64_t *address, uint32_t *data, struct iemu_result *result)
{
    struct iemu_vtd *v = vtd_of(unit);
    uint32_t diagnostic, index = 0;
    bool suppress = false, has_index;

    diagnostic = remap(v, request, address, data, &index, &suppress);
    if (!diagnostic)
        return;
    /* Fault information is the index, or undefined, here 0 (2.10). */
    has_index = diagnostic != VTD_DIAG_IR_20 && diagnostic != VTD_DIAG_IR_25 &&
                diagnostic != VTD_DIAG_IR_2A && diagnostic != VTD_DIAG_IR_2B;
    result->outcome = IEMU_UNSUPPORTED;
    result->diagnostic = diagnostic;
    result->fault = vtd_fault_rows[diagnostic].code;
    result->recorded = vtd_record_fault(v, request, diagnostic,
                                        has_index ? (uint64_t)index << 48 : 0, suppress);
}

void vtd_drain_interrupts(struct iemu_vtd *v)
{
    const struct iemu_drain drain = {
        .unit = &v->unit,
        .first = IEMU_INTERRUPT_BASE,
        .last = IEMU_INTERRUPT_BASE + IEMU_INTERRUPT_SIZE - 1,
        .any_domain = true,
        .writes = true,
    };

    iemu_dma_drain(v->unit.machine, &drain);
}
