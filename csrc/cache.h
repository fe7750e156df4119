/*
 * The one cache there is: set-associative, tags apart from payload, generation-tagged
 * invalidation. Context, IOTLB, paging-structure and interrupt caches are instances with their
 * own keys.
 *
 * A key is (page, who): page = input address rounded down to the page, with log2 of the page's
 * size in its low bits; who = requester and PASID, or domain, 48 bits. Lines of several page
 * sizes live in one cache; a lookup probes each size that is present.
 *
 * Wide invalidations (all, one domain) are stamps compared on lookup, so their cost does not
 * depend on what is cached. Ranges probe the sets, or sweep where that is cheaper.
 */
#ifndef IEMU_CACHE_H
#define IEMU_CACHE_H

#include "memory.h"

#define IEMU_DOMAINS  65536u
#define IEMU_NO_LINE  UINT64_MAX /* never a key: shift 63 leaves bits 62:6 clear */
#define IEMU_WHO_BITS 48u

/* What lookup, replacement and invalidation look at: two ways share a host's cache line. */
struct iemu_tag {
    uint64_t page;
    uint64_t who;    /* of the key in its low 48 bits; what domain invalidations match above */
    uint64_t filled; /* order among fills and wide invalidations; 0: empty */
    uint64_t used;   /* order of the last hit */
};

/* What it answers; the meaning of value and flags is the owner's. */
struct iemu_line {
    uint32_t domain;
    uint32_t flags;
    uint64_t value[4];
};

struct iemu_cache {
    struct iemu_tag *tag;
    struct iemu_line *line;
    uint64_t sizes;         /* bit s: lines of page shift s may be present */
    uint64_t stamp_wide;    /* generation of the last wide invalidation, whatever its scope */
    uint64_t stamp_all;     /* generation of the last full invalidation */
    uint64_t *stamp_domain; /* the same by domain */
    uint64_t generation;    /* fills and wide invalidations so far */
    uint64_t tick;          /* fills + hits */
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

static inline uint64_t iemu_tag_who(const struct iemu_tag *tag)
{
    return tag->who & ((1ull << IEMU_WHO_BITS) - 1);
}

static inline bool iemu_tag_is(const struct iemu_tag *tag, uint64_t page, uint64_t who)
{
    return tag->page == page && !((tag->who ^ who) << (64 - IEMU_WHO_BITS));
}

static inline uint32_t iemu_tag_domain(const struct iemu_tag *tag)
{
    return (uint32_t)(tag->who >> IEMU_WHO_BITS);
}

/* Filled, and after every wide invalidation that covers it. */
static inline bool iemu_tag_live(const struct iemu_cache *cache, const struct iemu_tag *tag)
{
    return iemu_likely(tag->filled > cache->stamp_wide) ||
           (tag->filled > cache->stamp_all &&
            tag->filled > cache->stamp_domain[iemu_tag_domain(tag)]);
}

static inline struct iemu_tag *iemu_cache_set(const struct iemu_cache *cache, uint32_t index)
{
    return &cache->tag[(size_t)(index & cache->set_mask) * cache->ways];
}

/* Looks in one set for an exact key; NULL if no live line has it. No statistics. */
static inline struct iemu_tag *iemu_cache_tag(const struct iemu_cache *cache, uint64_t page,
                                              uint64_t who, uint32_t index)
{
    struct iemu_tag *tag = iemu_cache_set(cache, index);

    for (const struct iemu_tag *end = tag + cache->ways; tag < end; tag++) {
        if (iemu_tag_is(tag, page, who))
            return iemu_likely(iemu_tag_live(cache, tag)) ? tag : NULL;
    }
    return NULL;
}

static inline struct iemu_line *iemu_cache_line(const struct iemu_cache *cache,
                                                const struct iemu_tag *tag)
{
    return &cache->line[tag - cache->tag];
}

/* Counts a hit and returns its line. */
static inline struct iemu_line *iemu_cache_use(struct iemu_cache *cache, struct iemu_tag *tag)
{
    tag->used = ++cache->tick;
    return iemu_cache_line(cache, tag);
}

/* The line with an exact key, or NULL. No statistics. */
static inline struct iemu_line *iemu_cache_probe(const struct iemu_cache *cache, uint64_t page,
                                                 uint64_t who, uint32_t index)
{
    const struct iemu_tag *tag = iemu_cache_tag(cache, page, who, index);

    return tag ? iemu_cache_line(cache, tag) : NULL;
}

/* The same; counts a hit or a miss. */
static inline struct iemu_line *iemu_cache_lookup(struct iemu_cache *cache, uint64_t page,
                                                  uint64_t who, uint32_t index)
{
    struct iemu_tag *tag = iemu_cache_tag(cache, page, who, index);

    if (iemu_likely(tag != NULL))
        return iemu_cache_use(cache, tag);
    cache->misses++;
    return NULL;
}

/* `page` above the page size, `address` below it; shift < 64. */
static inline uint64_t iemu_page_join(uint64_t page, uint64_t address, unsigned shift)
{
    return address ^ ((address ^ page) >> shift << shift);
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

/* Drops what of `domain` has this key in the set that begins with `tag`. */
void iemu_cache_drop_in_set(struct iemu_cache *cache, struct iemu_tag *tag, uint32_t domain,
                            uint64_t page);
/* Several pages of one size; true if it has looked at every size at once. */
bool iemu_cache_drop_pages(struct iemu_cache *cache, uint32_t domain, uint64_t first,
                           uint64_t last, unsigned shift);

/* Mostly there is nothing to drop: four ways, the usual number, are compared at once. */
static inline void iemu_cache_drop_page(struct iemu_cache *cache, uint32_t domain,
                                        uint64_t number, unsigned shift)
{
    uint64_t page = number << shift | shift;
    struct iemu_tag *tag = iemu_cache_set(cache, (uint32_t)number);

    if (iemu_likely(cache->ways == 4) &&
        iemu_likely(!((tag[0].page == page) | (tag[1].page == page) | (tag[2].page == page) |
                      (tag[3].page == page))))
        return;
    iemu_cache_drop_in_set(cache, tag, domain, page);
}

/* Drops every line of `domain` that covers any byte of [first, last]. */
static inline void iemu_cache_drop_range(struct iemu_cache *cache, uint32_t domain,
                                         uint64_t first, uint64_t last)
{
    for (uint64_t sizes = cache->sizes; sizes; sizes &= sizes - 1) {
        unsigned shift = (unsigned)__builtin_ctzll(sizes);

        if (iemu_likely(!((first ^ last) >> shift)))
            iemu_cache_drop_page(cache, domain, first >> shift, shift);
        else if (iemu_cache_drop_pages(cache, domain, first, last, shift))
            return;
    }
}

/* Looks an address up at every page size present, smallest first; counts a hit or a miss. */
static inline struct iemu_line *iemu_cache_find(struct iemu_cache *cache, uint64_t address,
                                                uint64_t who, unsigned *shift)
{
    for (uint64_t sizes = cache->sizes; sizes; sizes &= sizes - 1) {
        unsigned s = (unsigned)__builtin_ctzll(sizes);
        struct iemu_tag *tag =
            iemu_cache_tag(cache, iemu_page_key(address, s), who, iemu_page_index(address, s));

        if (iemu_likely(tag != NULL)) {
            *shift = s;
            return iemu_cache_use(cache, tag);
        }
    }
    cache->misses++;
    return NULL;
}

#endif
