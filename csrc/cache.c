#include "cache.h"

#include <stdlib.h>
#include <string.h>

static bool power_of_two(uint32_t value)
{
    return value && !(value & (value - 1));
}

int iemu_cache_init(struct iemu_cache *cache, const struct iemu_geometry *geometry)
{
    size_t lines = (size_t)geometry->sets * geometry->ways;

    if (!power_of_two(geometry->sets) || geometry->sets > 65536 || !geometry->ways ||
        geometry->ways > 1024 || lines > 1u << 20 || geometry->replacement > IEMU_RANDOM)
        return IEMU_E_ARGUMENT;
    memset(cache, 0, sizeof(*cache));
    cache->tag = aligned_alloc(64, (lines * sizeof(*cache->tag) + 63) & ~(size_t)63);
    cache->line = aligned_alloc(64, (lines * sizeof(*cache->line) + 63) & ~(size_t)63);
    cache->stamp_domain = calloc(IEMU_DOMAINS, sizeof(*cache->stamp_domain));
    if (!cache->tag || !cache->line || !cache->stamp_domain) {
        iemu_cache_free(cache);
        return IEMU_E_NO_MEMORY;
    }
    memset(cache->line, 0, lines * sizeof(*cache->line));
    for (size_t i = 0; i < lines; i++)
        cache->tag[i] = (struct iemu_tag){.page = IEMU_NO_LINE};
    cache->set_mask = geometry->sets - 1;
    cache->ways = geometry->ways;
    cache->replacement = geometry->replacement;
    /* xorshift64* must not start at 0. */
    cache->random = 0x9e3779b97f4a7c15ull ^ geometry->seed;
    return IEMU_OK;
}

void iemu_cache_free(struct iemu_cache *cache)
{
    free(cache->tag);
    free(cache->line);
    free(cache->stamp_domain);
    memset(cache, 0, sizeof(*cache));
}

static size_t line_count(const struct iemu_cache *cache)
{
    return ((size_t)cache->set_mask + 1) * cache->ways;
}

/* by_size counts what the last full invalidation has left; domains' dead lines still count. */
static inline bool is_counted(const struct iemu_cache *cache, const struct iemu_tag *tag)
{
    return tag->filled > cache->stamp_all;
}

static __attribute__((noinline)) void forget(struct iemu_cache *cache, struct iemu_tag *tag)
{
    unsigned shift = iemu_key_shift(tag->page);

    if (is_counted(cache, tag) && !--cache->by_size[shift])
        cache->sizes &= ~(1ull << shift);
    tag->page = IEMU_NO_LINE;
    tag->filled = 0;
}

/* A way gets a page of another size, or its first one. */
static __attribute__((noinline)) void change_size(struct iemu_cache *cache, struct iemu_tag *tag,
                                                  unsigned shift)
{
    forget(cache, tag);
    cache->by_size[shift]++;
    cache->sizes |= 1ull << shift;
}

static __attribute__((noinline)) uint32_t random_way(struct iemu_cache *cache)
{
    cache->random ^= cache->random >> 12;
    cache->random ^= cache->random << 25;
    cache->random ^= cache->random >> 27;
    return (uint32_t)((cache->random * 0x2545f4914f6cdd1dull) >> 32) % cache->ways;
}

/*
 * The same key first, then an empty or dead way, then the policy's choice. Which way is oldest
 * cannot be predicted, so it is computed without a branch.
 */
static inline struct iemu_tag *victim(struct iemu_cache *cache, struct iemu_tag *set, uint64_t page,
                                      uint64_t who, bool fifo)
{
    struct iemu_tag *chosen = set;
    uint64_t oldest = UINT64_MAX;

    for (struct iemu_tag *tag = set, *end = set + cache->ways; tag < end; tag++) {
        uint64_t age = fifo ? tag->filled : tag->used;

        if (iemu_unlikely(iemu_tag_is(tag, page, who)))
            return tag;
        if (!iemu_tag_live(cache, tag))
            age = 0;
        chosen = age < oldest ? tag : chosen;
        oldest = age < oldest ? age : oldest;
    }
    if (!oldest)
        return chosen;
    cache->evictions++;
    return cache->replacement == IEMU_RANDOM ? set + random_way(cache) : chosen;
}

struct iemu_line *iemu_cache_fill(struct iemu_cache *cache, uint64_t page, uint64_t who,
                                  uint32_t index, uint32_t domain)
{
    struct iemu_tag *set = iemu_cache_set(cache, index);
    struct iemu_tag *tag = cache->replacement == IEMU_FIFO ? victim(cache, set, page, who, true)
                                                           : victim(cache, set, page, who, false);
    struct iemu_line *line = iemu_cache_line(cache, tag);

    if (iemu_unlikely(!is_counted(cache, tag) || iemu_key_shift(tag->page ^ page)))
        change_size(cache, tag, iemu_key_shift(page));
    cache->fills++;
    tag->page = page;
    tag->who = who | (uint64_t)domain << IEMU_WHO_BITS;
    tag->filled = ++cache->generation;
    tag->used = ++cache->tick;
    line->domain = domain;
    return line;
}

void iemu_cache_drop_all(struct iemu_cache *cache)
{
    cache->stamp_all = cache->stamp_wide = ++cache->generation;
    cache->sizes = 0;
    memset(cache->by_size, 0, sizeof(cache->by_size));
}

void iemu_cache_drop_domain(struct iemu_cache *cache, uint32_t domain)
{
    cache->stamp_domain[domain] = cache->stamp_wide = ++cache->generation;
}

/* Whether the page of `key` shares a byte with [first, last]. */
static bool covers(uint64_t key, uint64_t first, uint64_t last)
{
    unsigned shift = iemu_key_shift(key);
    uint64_t start = key >> shift << shift;

    return start <= last && (start | ((1ull << shift) - 1)) >= first;
}

static void sweep(struct iemu_cache *cache, uint32_t domain, uint64_t first, uint64_t last)
{
    for (struct iemu_tag *tag = cache->tag, *end = tag + line_count(cache); tag < end; tag++) {
        if (tag->page != IEMU_NO_LINE && iemu_tag_domain(tag) == domain &&
            covers(tag->page, first, last))
            forget(cache, tag);
    }
}

void iemu_cache_drop_in_set(struct iemu_cache *cache, struct iemu_tag *tag, uint32_t domain,
                            uint64_t page)
{
    for (const struct iemu_tag *end = tag + cache->ways; tag < end; tag++) {
        if (tag->page == page && iemu_tag_domain(tag) == domain)
            forget(cache, tag);
    }
}

bool iemu_cache_drop_pages(struct iemu_cache *cache, uint32_t domain, uint64_t first,
                           uint64_t last, unsigned shift)
{
    uint64_t number = first >> shift, more = (last >> shift) - number;

    if (more >= cache->set_mask) {
        sweep(cache, domain, first, last);
        return true;
    }
    do
        iemu_cache_drop_page(cache, domain, number++, shift);
    while (more--);
    return false;
}

static void drop_keys_in_set(struct iemu_cache *cache, uint32_t index, uint64_t who,
                             uint64_t ignored, const uint32_t *domain)
{
    struct iemu_tag *tag = iemu_cache_set(cache, index);

    for (struct iemu_tag *end = tag + cache->ways; tag < end; tag++) {
        if (tag->page != IEMU_NO_LINE && !((iemu_tag_who(tag) ^ who) & ~ignored) &&
            (!domain || iemu_tag_domain(tag) == *domain))
            forget(cache, tag);
    }
}

void iemu_cache_drop_keys(struct iemu_cache *cache, uint64_t who, uint64_t ignored,
                          const uint32_t *domain)
{
    uint64_t keys = 1ull << __builtin_popcountll(ignored & UINT32_MAX), subset = 0;

    if (keys > cache->set_mask) {
        for (uint32_t set = 0; set <= cache->set_mask; set++)
            drop_keys_in_set(cache, set, who, ignored, domain);
        return;
    }
    do { /* every subset of the ignored bits, each with the set that it selects */
        drop_keys_in_set(cache, (uint32_t)((who & ~ignored) | subset), who, ignored, domain);
        subset = (subset - ignored) & ignored;
    } while (subset);
}
