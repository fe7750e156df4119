/* The one probe that a translation costs when the IOTLB is looked up by requester. */
#ifndef IEMU_HIT_H
#define IEMU_HIT_H

#include "unit.h"

/*
 * Answers an untranslated request without PASID from the IOTLB. False: no line, a line without
 * the permission, or a cached fault; the long way decides then, and nothing was counted.
 */
static inline __attribute__((always_inline)) bool iemu_iotlb_hit(struct iemu_unit *unit,
                                                                 const struct iemu_request *request,
                                                                 struct iemu_result *result)
{
    struct iemu_cache *iotlb = &unit->cache[IEMU_CACHE_IOTLB];

    for (uint64_t sizes = iotlb->sizes; sizes; sizes &= sizes - 1) {
        unsigned shift = (unsigned)__builtin_ctzll(sizes);
        struct iemu_line *line =
            iemu_cache_probe(iotlb, iemu_page_key(request->address, shift), request->requester,
                             iemu_page_index(request->address, shift));
        uint64_t leaf;

        if (!line)
            continue;
        leaf = line->value[0];
        if (iemu_unlikely(request->access & ~leaf || leaf & IEMU_LEAF_NEGATIVE))
            return false;
        line->used = ++iotlb->tick;
        result->address =
            (leaf & ~iemu_low_mask(shift)) | (request->address & iemu_low_mask(shift));
        result->diagnostic = 0;
        result->outcome = IEMU_MEMORY;
        result->page_shift = (uint8_t)shift;
        result->permissions = leaf & IEMU_LEAF_PERMISSIONS;
        result->attributes = leaf & IEMU_LEAF_SNOOP ? IEMU_SNOOP : 0;
        result->domain = line->domain;
        result->fault = 0;
        result->recorded = 0;
        return true;
    }
    return false;
}

#endif
