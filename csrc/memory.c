#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct iemu_region {
    uint8_t *host;
    uint64_t size;
    uint32_t references;
};

/* A file that its owner could still shrink would take our process down with SIGBUS. */
static bool sealed_against_shrinking(int fd, uint64_t end)
{
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);

    return seals >= 0 && (seals & F_SEAL_SHRINK) && fstat(fd, &status) == 0 &&
           (uint64_t)status.st_size >= end;
}

struct iemu_region *iemu_region_create(uint64_t size, int fd, uint64_t offset, int *error)
{
    struct iemu_region *region;
    uint8_t *guarded;
    void *mapped;

    *error = IEMU_E_ARGUMENT;
    if (!size || size % IEMU_PAGE || size > 1ull << 46 || offset % IEMU_PAGE ||
        offset > 1ull << 46 || (fd < 0 && offset))
        return NULL;
    if (fd >= 0 && !sealed_against_shrinking(fd, offset + size)) {
        *error = IEMU_E_UNSEALED;
        return NULL;
    }
    *error = IEMU_E_NO_MEMORY;
    region = calloc(1, sizeof(*region));
    if (!region)
        return NULL;
    /* Guard pages on both sides: sanitizers do not see an overrun inside one mapping. */
    guarded = mmap(NULL, size + 2 * IEMU_PAGE, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (guarded == MAP_FAILED) {
        free(region);
        return NULL;
    }
    mapped = mmap(guarded + IEMU_PAGE, size, PROT_READ | PROT_WRITE,
                  MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED),
                  fd, (off_t)offset);
    if (mapped == MAP_FAILED) {
        munmap(guarded, size + 2 * IEMU_PAGE);
        free(region);
        return NULL;
    }
    region->host = mapped;
    region->size = size;
    region->references = 1;
    *error = IEMU_OK;
    return region;
}

void iemu_region_release(struct iemu_region *region)
{
    if (__atomic_sub_fetch(&region->references, 1, __ATOMIC_ACQ_REL))
        return;
    munmap(region->host - IEMU_PAGE, region->size + 2 * IEMU_PAGE);
    free(region);
}

void *iemu_region_host(struct iemu_region *region)
{
    return region->host;
}

uint64_t iemu_region_size(const struct iemu_region *region)
{
    return region->size;
}

static uint64_t last_byte(const struct iemu_range *range)
{
    return range->base + (range->size - 1);
}

int iemu_memory_add(struct iemu_memory *memory, const struct iemu_range *added)
{
    struct iemu_range range = *added;
    uint32_t at = 0;

    if (range.region) {
        range.host = range.region->host;
        range.size = range.region->size;
    }
    if (!range.size || range.base % IEMU_PAGE || range.size % IEMU_PAGE ||
        range.base + (range.size - 1) < range.base)
        return IEMU_E_ARGUMENT;
    if (memory->ranges == IEMU_MAX_RANGES)
        return IEMU_E_FULL;
    if (range.kind == IEMU_RANGE_RAM && !range.host && !memory->hollow) {
        memory->hollow = calloc(1, IEMU_PAGE + IEMU_UNIT_BYTES);
        if (!memory->hollow)
            return IEMU_E_NO_MEMORY;
    }
    while (at < memory->ranges && memory->range[at].base < range.base)
        at++;
    if ((at > 0 && last_byte(&memory->range[at - 1]) >= range.base) ||
        (at < memory->ranges && last_byte(&range) >= memory->range[at].base))
        return IEMU_E_OVERLAP;
    memmove(&memory->range[at + 1], &memory->range[at],
            (memory->ranges - at) * sizeof(memory->range[0]));
    memory->range[at] = range;
    memory->ranges++;
    memory->recent = 0;
    if (range.region)
        __atomic_add_fetch(&range.region->references, 1, __ATOMIC_RELAXED);
    return IEMU_OK;
}

static void remove_at(struct iemu_memory *memory, uint32_t at)
{
    if (memory->range[at].region)
        iemu_region_release(memory->range[at].region);
    memory->ranges--;
    memmove(&memory->range[at], &memory->range[at + 1],
            (memory->ranges - at) * sizeof(memory->range[0]));
    memset(&memory->range[memory->ranges], 0, sizeof(memory->range[0]));
    memory->recent = 0;
}

static int drop(struct iemu_memory *memory, uint64_t base, bool registers)
{
    for (uint32_t i = 0; i < memory->ranges; i++) {
        if (memory->range[i].base == base &&
            (memory->range[i].kind == IEMU_RANGE_REGISTERS) == registers) {
            remove_at(memory, i);
            return IEMU_OK;
        }
    }
    return IEMU_E_ARGUMENT;
}

int iemu_memory_drop(struct iemu_memory *memory, uint64_t base)
{
    return drop(memory, base, false);
}

int iemu_memory_drop_registers(struct iemu_memory *memory, uint64_t base)
{
    return drop(memory, base, true);
}

void iemu_memory_clear(struct iemu_memory *memory)
{
    while (memory->ranges)
        remove_at(memory, memory->ranges - 1);
    free(memory->hollow);
    memory->hollow = NULL;
}

const struct iemu_range *iemu_memory_find(const struct iemu_memory *memory, uint64_t address)
{
    uint32_t low = 0, high = memory->ranges;

    while (low < high) {
        uint32_t middle = (low + high) / 2;

        if (memory->range[middle].base <= address)
            low = middle + 1;
        else
            high = middle;
    }
    if (!low || address - memory->range[low - 1].base >= memory->range[low - 1].size)
        return NULL;
    return &memory->range[low - 1];
}

uint8_t *iemu_memory_ram_slow(struct iemu_memory *memory, uint64_t address, uint64_t length)
{
    const struct iemu_range *range = iemu_memory_find(memory, address);
    uint64_t offset;

    if (!range || range->kind != IEMU_RANGE_RAM)
        return NULL;
    offset = address - range->base;
    if (length > range->size - offset)
        return NULL;
    if (!range->host) /* a device's part of a page, or what a unit reads or stores at once */
        return memory->hollow + address % IEMU_PAGE;
    memory->recent = (uint32_t)(range - memory->range);
    return range->host + offset;
}

void iemu_memory_fire(struct iemu_memory *memory, uint64_t granule, uint64_t bytes)
{
    uint32_t kept = 0;
    uint32_t count = memory->armed_count;

    for (uint32_t i = 0; i < count; i++) {
        struct iemu_armed_store store = memory->armed[i];
        uint8_t *host;

        if (store.trigger - granule >= bytes) {
            memory->armed[kept++] = store;
            continue;
        }
        host = iemu_memory_ram(memory, store.target, 8);
        if (host)
            __atomic_store_n((uint64_t *)host, store.value, __ATOMIC_RELAXED);
    }
    memory->armed_count = kept;
    iemu_memory_observe(memory);
}

void iemu_memory_observe(struct iemu_memory *memory)
{
    memory->observed = memory->armed_count || memory->journal;
}

void iemu_memory_fetched(struct iemu_memory *memory, uint64_t address, uint64_t *value)
{
    if (memory->journal)
        iemu_journal_fetch(memory->journal, address, value, 1);
    iemu_memory_fire(memory, address & ~7ull, 8);
}

/* 16 bytes in one aligned load: atomic on every x86-64 that has AVX. */
typedef uint64_t pair __attribute__((vector_size(16), may_alias));

static inline void load_pair(const uint8_t *host, uint64_t *out)
{
    pair both = *(const volatile pair *)host;

    out[0] = both[0];
    out[1] = both[1];
}

static void load_granule(const uint8_t *host, uint64_t *out, unsigned words)
{
    if (words == 1) {
        out[0] = __atomic_load_n((const uint64_t *)host, __ATOMIC_RELAXED);
    } else if (words == 2) {
        load_pair(host, out);
    } else {
        /* No 256-bit access is atomic towards another CPU: read until two reads agree. */
        uint64_t again[4];

        load_granule(host, out, 2);
        load_granule(host + 16, out + 2, 2);
        for (unsigned tries = 0; tries < 64; tries++) {
            load_granule(host, again, 2);
            load_granule(host + 16, again + 2, 2);
            if (!memcmp(again, out, sizeof(again)))
                break;
            memcpy(out, again, sizeof(again));
        }
    }
}

/* Between two granules armed stores fire. */
static IEMU_COLD bool fetch_observed(struct iemu_memory *memory, uint64_t address, uint64_t *entry,
                                     unsigned words, unsigned step)
{
    const uint8_t *host = iemu_memory_ram(memory, address, 8ull * words);

    if (!host)
        return false;
    for (unsigned word = 0; word < words; word += step) {
        load_granule(host + 8 * word, entry + word, step);
        iemu_memory_fire(memory, address + 8ull * word, 8ull * step);
    }
    if (memory->journal)
        iemu_journal_fetch(memory->journal, address, entry, words);
    return true;
}

bool iemu_fetch_entry(struct iemu_memory *memory, uint64_t address, uint64_t *entry,
                      unsigned words, unsigned granule_words)
{
    unsigned step = granule_words < words ? granule_words : words;
    const uint8_t *host;

    if (iemu_unlikely(memory->observed))
        return fetch_observed(memory, address, entry, words, step);
    host = iemu_memory_ram(memory, address, 8ull * words);
    if (iemu_unlikely(!host))
        return false;
    if (iemu_likely(words == 2 && step == 2)) {
        load_pair(host, entry); /* context entries and descriptors */
        return true;
    }
    for (unsigned word = 0; word < words; word += step)
        load_granule(host + 8 * word, entry + word, step);
    return true;
}

static IEMU_COLD bool store_observed(struct iemu_memory *memory, uint64_t address,
                                     const void *data, size_t length)
{
    uint8_t *host = iemu_memory_ram(memory, address, length);

    if (!host)
        return false;
    memcpy(host, data, length);
    if (memory->journal)
        iemu_journal_store(memory->journal, address, data, length);
    return true;
}

bool iemu_unit_store(struct iemu_memory *memory, uint64_t address, const void *data, size_t length)
{
    uint8_t *host;

    if (iemu_unlikely(memory->observed))
        return store_observed(memory, address, data, length);
    host = iemu_memory_ram(memory, address, length);
    if (!host)
        return false;
    memcpy(host, data, length);
    return true;
}
