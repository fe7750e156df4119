/* The one probe that a translation costs when the IOTLB is looked up by requester. */
#ifndef IEMU_HIT_H
#define IEMU_HIT_H

#include "unit.h"

enum iemu_hit {
    IEMU_HIT,
    IEMU_MISS,    /* the IOTLB has no line */
    IEMU_REFUSED, /* it has one without the permission, or a cached fault */
};

/*
 * Answers an untranslated request without PASID from the IOTLB; unless it hits, the long way
 * decides, and nothing was counted.
 */
static inline __attribute__((always_inline)) enum iemu_hit
iemu_iotlb_hit(struct iemu_unit *unit, const struct iemu_request *request,
               struct iemu_result *result)
{
    struct iemu_cache *iotlb = &unit->cache[IEMU_CACHE_IOTLB];

    for (uint64_t sizes = iotlb->sizes; sizes; sizes &= sizes - 1) {
        unsigned shift = (unsigned)__builtin_ctzll(sizes);
        struct iemu_tag *tag =
            iemu_cache_tag(iotlb, iemu_page_key(request->address, shift), request->requester,
                           iemu_page_index(request->address, shift));
        const struct iemu_line *line;
        uint64_t leaf;

        if (!tag)
            continue;
        line = iemu_cache_line(iotlb, tag);
        leaf = line->value[0];
        if (iemu_unlikely(request->access & ~leaf || leaf & IEMU_LEAF_NEGATIVE))
            return IEMU_REFUSED;
        iemu_cache_use(iotlb, tag);
        result->address = iemu_page_join(leaf, request->address, shift);
        result->diagnostic = 0;
        result->outcome = IEMU_MEMORY;
        result->page_shift = (uint8_t)shift;
        result->permissions = leaf & IEMU_LEAF_PERMISSIONS;
        result->attributes = leaf & IEMU_LEAF_SNOOP ? IEMU_SNOOP : 0;
        result->domain = line->domain;
        result->fault = 0;
        result->recorded = 0;
        return IEMU_HIT;
    }
    return IEMU_MISS;
}

#endif
