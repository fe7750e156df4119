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
    cache->generation = 1;
    return IEMU_OK;
}

void iemu_cache_free(struct iemu_cache *cache)
{
    free(cache->tag);
    free(cache->line);
    free(cache->stamp_domain);
    memset(cache, 0, sizeof(*cache));
}

/* by_size counts what the last full invalidation has left; domains' dead lines still count. */
static bool is_counted(const struct iemu_cache *cache, size_t at)
{
    return cache->tag[at].page != IEMU_NO_LINE && cache->line[at].stamp >= cache->stamp_all;
}

static void forget(struct iemu_cache *cache, size_t at)
{
    unsigned shift = iemu_key_shift(cache->tag[at].page);

    if (is_counted(cache, at) && !--cache->by_size[shift])
        cache->sizes &= ~(1ull << shift);
    cache->tag[at].page = IEMU_NO_LINE;
}

static uint32_t random_way(struct iemu_cache *cache)
{
    cache->random ^= cache->random >> 12;
    cache->random ^= cache->random << 25;
    cache->random ^= cache->random >> 27;
    return (uint32_t)((cache->random * 0x2545f4914f6cdd1dull) >> 32) % cache->ways;
}

/* The same key first, then an empty or dead way, then the policy's choice. */
static size_t victim(struct iemu_cache *cache, size_t first, uint64_t page, uint64_t who)
{
    size_t empty = SIZE_MAX, oldest = first;

    for (size_t at = first; at < first + cache->ways; at++) {
        const struct iemu_line *line = &cache->line[at];

        if (cache->tag[at].page == page && cache->tag[at].who == who)
            return at;
        if (cache->tag[at].page == IEMU_NO_LINE || !iemu_line_live(cache, line)) {
            if (empty == SIZE_MAX)
                empty = at;
        } else if (cache->replacement == IEMU_LRU ? line->used < cache->line[oldest].used
                                                  : line->born < cache->line[oldest].born) {
            oldest = at;
        }
    }
    if (empty != SIZE_MAX)
        return empty;
    cache->evictions++;
    return cache->replacement == IEMU_RANDOM ? first + random_way(cache) : oldest;
}

struct iemu_line *iemu_cache_fill(struct iemu_cache *cache, uint64_t page, uint64_t who,
                                  uint32_t index, uint32_t domain)
{
    size_t at = victim(cache, (size_t)(index & cache->set_mask) * cache->ways, page, who);
    unsigned shift = iemu_key_shift(page);
    struct iemu_line *line = &cache->line[at];

    forget(cache, at);
    cache->by_size[shift]++;
    cache->sizes |= 1ull << shift;
    cache->tag[at] = (struct iemu_tag){.page = page, .who = who};
    cache->fills++;
    line->born = line->used = ++cache->tick;
    line->stamp = cache->generation;
    line->domain = domain;
    return line;
}

void iemu_cache_drop_all(struct iemu_cache *cache)
{
    cache->stamp_all = ++cache->generation;
    cache->sizes = 0;
    memset(cache->by_size, 0, sizeof(cache->by_size));
}

void iemu_cache_drop_domain(struct iemu_cache *cache, uint32_t domain)
{
    cache->stamp_domain[domain] = ++cache->generation;
}

/* Whether the page of `key` shares a byte with [first, last]. */
static bool covers(uint64_t key, uint64_t first, uint64_t last)
{
    unsigned shift = iemu_key_shift(key);
    uint64_t start = key >> shift << shift;

    return start <= last && (start | ((1ull << shift) - 1)) >= first;
}

static void drop_in_set(struct iemu_cache *cache, uint32_t index, uint32_t domain, uint64_t first,
                        uint64_t last)
{
    size_t at = (size_t)(index & cache->set_mask) * cache->ways;

    for (size_t end = at + cache->ways; at < end; at++) {
        if (cache->tag[at].page != IEMU_NO_LINE && cache->line[at].domain == domain &&
            covers(cache->tag[at].page, first, last))
            forget(cache, at);
    }
}

void iemu_cache_drop_range(struct iemu_cache *cache, uint32_t domain, uint64_t first,
                           uint64_t last)
{
    uint64_t all_sets = (uint64_t)cache->set_mask + 1;

    for (uint64_t sizes = cache->sizes; sizes; sizes &= sizes - 1) {
        unsigned shift = (unsigned)__builtin_ctzll(sizes);
        uint64_t probes = (last >> shift) - (first >> shift);

        if (probes >= all_sets - 1) {
            /* A sweep looks at every size at once. */
            for (uint32_t set = 0; set <= cache->set_mask; set++)
                drop_in_set(cache, set, domain, first, last);
            return;
        }
        for (uint64_t page = first >> shift; page <= last >> shift; page++)
            drop_in_set(cache, (uint32_t)page, domain, first, last);
    }
}

static void drop_keys_in_set(struct iemu_cache *cache, uint32_t index, uint64_t who,
                             uint64_t ignored, const uint32_t *domain)
{
    size_t at = (size_t)(index & cache->set_mask) * cache->ways;

    for (size_t end = at + cache->ways; at < end; at++) {
        if (cache->tag[at].page != IEMU_NO_LINE && !((cache->tag[at].who ^ who) & ~ignored) &&
            (!domain || cache->line[at].domain == *domain))
            forget(cache, at);
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
