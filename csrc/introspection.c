#include "introspection.h"

#include <string.h>

#include "fields.h"

size_t iemu_count(const struct iemu_unit *unit, struct iemu_counter *counters, size_t count)
{
    const struct iemu_statistics *statistics = &unit->statistics;
    const struct iemu_cache *iotlb = &unit->cache[IEMU_CACHE_IOTLB];
    const struct iemu_cache *context = &unit->cache[IEMU_CACHE_CONTEXT];
    const struct iemu_cache *paging = &unit->cache[IEMU_CACHE_PAGING];
    const struct iemu_cache *interrupt = &unit->cache[IEMU_CACHE_INTERRUPT];
    const struct iemu_counter all[] = {
        {"iotlb_lookup", iemu_cache_hits(iotlb) + iotlb->misses},
        {"iotlb_hit", iemu_cache_hits(iotlb)},
        {"iotlb_eviction", iotlb->evictions},
        {"ctxt_cache_lookup", iemu_cache_hits(context) + context->misses},
        {"ctxt_cache_hit", iemu_cache_hits(context)},
        {"ss_nonleaf_lookup", iemu_cache_hits(paging) + paging->misses},
        {"ss_nonleaf_hit", iemu_cache_hits(paging)},
        {"int_cache_lookup", iemu_cache_hits(interrupt) + interrupt->misses},
        {"int_cache_hit_nonposted", iemu_cache_hits(interrupt)},
        {"iommu_mrds", statistics->memory_reads},
        {"faults_recorded", statistics->faults_recorded},
        {"faults_lost", statistics->faults_lost},
        {"descriptors", statistics->descriptors},
        {"device_tlb_invalidations", unit->itags.sent},
        {"device_tlb_timeouts", unit->itags.timed_out},
    };

    memcpy(counters, all, (count < IEMU_COUNT(all) ? count : IEMU_COUNT(all)) * sizeof(all[0]));
    return IEMU_COUNT(all);
}

void iemu_describe_line(const struct iemu_unit *unit, uint32_t cache, const struct iemu_tag *tag,
                        const struct iemu_line *line, struct iemu_cache_entry *entry)
{
    bool by_requester = cache == IEMU_CACHE_CONTEXT ||
                        (cache == IEMU_CACHE_IOTLB && unit->iotlb_lookup == IEMU_BY_REQUESTER);

    entry->requester = by_requester ? (uint16_t)iemu_tag_who(tag) : 0;
    if (cache == IEMU_CACHE_CONTEXT) {
        entry->output = line->value[0];
        entry->negative = !!(line->flags & IEMU_LEAF_NEGATIVE);
        return;
    }
    entry->page_shift = (uint8_t)iemu_key_shift(tag->page);
    entry->address = tag->page & ~63ull;
    entry->output = line->value[0] & ~0xfffull;
    entry->permissions = line->value[0] & IEMU_LEAF_PERMISSIONS;
    if (cache == IEMU_CACHE_IOTLB) {
        entry->negative = !!(line->value[0] & IEMU_LEAF_NEGATIVE);
        entry->attributes = line->value[0] & IEMU_LEAF_SNOOP ? IEMU_SNOOP : 0;
    }
}
