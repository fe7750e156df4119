/*
 * The one cache there is: set-associative, tags apart from payload, generation-tagged
 * invalidation. Context, IOTLB, paging-structure and interrupt caches are instances with their
 * own keys.
 *
 * A key is (page, who): page = input address rounded down to the page, with log2 of the page's
 * size in its low bits; who = requester and PASID, or domain. Lines of several page sizes live
 * in one cache; a lookup probes each size that is present.
 *
 * Wide invalidations (all, one domain) are stamps compared on lookup, so their cost does not
 * depend on what is cached. Ranges probe the sets, or sweep where that is cheaper.
 */
#ifndef IEMU_CACHE_H
#define IEMU_CACHE_H

#include "memory.h"

#define IEMU_DOMAINS 65536u
#define IEMU_NO_LINE UINT64_MAX /* never a key: shift 63 leaves bits 62:6 clear */

struct iemu_tag {
    uint64_t page;
    uint64_t who;
};

struct iemu_line {
    uint64_t stamp;    /* generation at fill; valid if not older than any covering stamp */
    uint64_t born;     /* order of filling */
    uint64_t used;     /* order of the last hit */
    uint64_t value[4]; /* meaning is the owner's */
    uint32_t domain;   /* what domain invalidations match */
    uint32_t flags;    /* meaning is the owner's */
};

struct iemu_cache {
    struct iemu_tag *tag;
    struct iemu_line *line;
    uint64_t sizes;        /* bit s: lines of page shift s may be present */
    uint64_t stamp_all;    /* generation of the last full invalidation */
    uint64_t *stamp_domain; /* the same by domain */
    uint64_t generation;
    uint64_t tick; /* fills + hits */
    uint64_t fills;
    uint64_t misses;
    uint64_t evictions;
    uint64_t random;
    uint32_t set_mask;
    uint32_t ways;
    uint32_t replacement;
    uint32_t by_size[64]; /* lines filled of each page shift, not counting those dropped */
};

int iemu_cache_init(struct iemu_cache *cache, const struct iemu_geometry *geometry);
void iemu_cache_free(struct iemu_cache *cache);
/*
 * Makes room in the set of `page` and tags it; the caller fills value and flags. A line with the
 * same key is replaced. Never fails.
 */
struct iemu_line *iemu_cache_fill(struct iemu_cache *cache, uint64_t page, uint64_t who,
                                  uint32_t index, uint32_t domain);
void iemu_cache_drop_all(struct iemu_cache *cache);
void iemu_cache_drop_domain(struct iemu_cache *cache, uint32_t domain);
/* Drops every line of `domain` that covers any byte of [first, last]. */
void iemu_cache_drop_range(struct iemu_cache *cache, uint32_t domain, uint64_t first,
                           uint64_t last);
/*
 * For caches whose lines have page 0 and are indexed by who: drops the lines whose who equals
 * `who` but for the `ignored` bits and, unless `domain` is NULL, whose domain is *domain.
 */
void iemu_cache_drop_keys(struct iemu_cache *cache, uint64_t who, uint64_t ignored,
                          const uint32_t *domain);
/* Hits so far. */
static inline uint64_t iemu_cache_hits(const struct iemu_cache *cache)
{
    return cache->tick - cache->fills;
}

static inline bool iemu_line_live(const struct iemu_cache *cache, const struct iemu_line *line)
{
    return line->stamp >= cache->stamp_all && line->stamp >= cache->stamp_domain[line->domain];
}

/* Probes one set for an exact key. No statistics. */
static inline struct iemu_line *iemu_cache_probe(struct iemu_cache *cache, uint64_t page,
                                                 uint64_t who, uint32_t index)
{
    size_t first = (size_t)(index & cache->set_mask) * cache->ways;
    const struct iemu_tag *tag = &cache->tag[first];

    for (uint32_t way = 0; way < cache->ways; way++) {
        if (tag[way].page == page && tag[way].who == who) {
            struct iemu_line *line = &cache->line[first + way];

            return iemu_likely(iemu_line_live(cache, line)) ? line : NULL;
        }
    }
    return NULL;
}

static inline uint64_t iemu_page_key(uint64_t address, unsigned shift)
{
    return (address >> shift << shift) | shift;
}

static inline uint32_t iemu_page_index(uint64_t address, unsigned shift)
{
    return (uint32_t)(address >> shift);
}

static inline unsigned iemu_key_shift(uint64_t page)
{
    return page & 63;
}

/* Looks an address up at every page size present, smallest first; counts a hit or a miss. */
static inline struct iemu_line *iemu_cache_find(struct iemu_cache *cache, uint64_t address,
                                                uint64_t who, unsigned *shift)
{
    for (uint64_t sizes = cache->sizes; sizes; sizes &= sizes - 1) {
        unsigned s = (unsigned)__builtin_ctzll(sizes);
        struct iemu_line *line = iemu_cache_probe(cache, iemu_page_key(address, s), who,
                                                  iemu_page_index(address, s));

        if (iemu_likely(line != NULL)) {
            line->used = ++cache->tick;
            *shift = s;
            return line;
        }
    }
    cache->misses++;
    return NULL;
}

#endif
