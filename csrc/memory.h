/* Physical memory: RAM, BAR windows, register windows, holes. */
#ifndef IEMU_MEMORY_H
#define IEMU_MEMORY_H

#include "journal.h"

#define IEMU_PAGE 4096u
#define IEMU_MAX_RANGES 256u
#define IEMU_MAX_ARMED 16u
#define IEMU_UNIT_BYTES 32u /* that a unit reads or stores at once, at most */

#define iemu_likely(x) __builtin_expect(!!(x), 1)
#define iemu_unlikely(x) __builtin_expect(!!(x), 0)
/* Kept out of functions that are hot without it. */
#define IEMU_COLD __attribute__((noinline, cold))

enum iemu_range_kind {
    IEMU_RANGE_RAM,
    IEMU_RANGE_BAR,       /* a function's BAR: the outbox carries the access */
    IEMU_RANGE_REGISTERS, /* an IOMMU's registers: DMA to them is an Unsupported Request */
};

struct iemu_range {
    uint64_t base;
    uint64_t size;
    uint8_t *host; /* RAM that is not hollow */
    struct iemu_region *region;
    enum iemu_range_kind kind;
    uint32_t owner; /* BAR only */
};

struct iemu_armed_store {
    uint64_t trigger;
    uint64_t target;
    uint64_t value;
};

struct iemu_memory {
    struct iemu_range range[IEMU_MAX_RANGES]; /* sorted by base */
    uint32_t ranges;
    uint32_t recent; /* index of the RAM range that answered last */
    struct iemu_armed_store armed[IEMU_MAX_ARMED];
    uint32_t armed_count;
    /* What a unit reads or stores does more than that: armed stores, or a journal. */
    bool observed;
    struct iemu_journal *journal; /* NULL: none */
    uint8_t *hollow;              /* stands for every page of hollow RAM */
};

int iemu_memory_add(struct iemu_memory *memory, const struct iemu_range *range);
/* Removes the RAM or BAR window, or the register window, that starts at `base`. */
int iemu_memory_drop(struct iemu_memory *memory, uint64_t base);
int iemu_memory_drop_registers(struct iemu_memory *memory, uint64_t base);
void iemu_memory_clear(struct iemu_memory *memory);
/* The range that holds `address`, or NULL for a hole. */
const struct iemu_range *iemu_memory_find(const struct iemu_memory *memory, uint64_t address);
uint8_t *iemu_memory_ram_slow(struct iemu_memory *memory, uint64_t address, uint64_t length);
/* After anything that `observed` is about has changed. */
void iemu_memory_observe(struct iemu_memory *memory);
/* A unit has read `bytes` from `granule` on: armed stores fire. */
void iemu_memory_fire(struct iemu_memory *memory, uint64_t granule, uint64_t bytes);
/* The same for one quadword, and the journal. */
void iemu_memory_fetched(struct iemu_memory *memory, uint64_t address, uint64_t *value);
uint64_t iemu_region_size(const struct iemu_region *region);

/* Host address of RAM that holds all of [address, address + length), or NULL. length >= 1. */
static inline uint8_t *iemu_memory_ram(struct iemu_memory *memory, uint64_t address,
                                       uint64_t length)
{
    const struct iemu_range *range = &memory->range[memory->recent];
    uint64_t offset = address - range->base;

    if (iemu_likely(range->host && offset < range->size && length <= range->size - offset))
        return range->host + offset;
    return iemu_memory_ram_slow(memory, address, length);
}

/* The unit's view of an 8-byte table entry: one access, never torn. False: a fetch error. */
static inline bool iemu_fetch64(struct iemu_memory *memory, uint64_t address, uint64_t *value)
{
    const uint8_t *host = iemu_memory_ram(memory, address, 8);

    if (iemu_unlikely(!host))
        return false;
    *value = __atomic_load_n((const uint64_t *)host, __ATOMIC_RELAXED);
    if (iemu_unlikely(memory->observed))
        iemu_memory_fetched(memory, address, value);
    return true;
}

/*
 * Fetches an entry of `words` quadwords (1, 2 or 4; aligned to its size) in granules of
 * `granule_words`. A granule is consistent in itself; between two granules software may write.
 */
bool iemu_fetch_entry(struct iemu_memory *memory, uint64_t address, uint64_t *entry,
                      unsigned words, unsigned granule_words);
/* A unit's own write (status, log entry; up to IEMU_UNIT_BYTES) to RAM. False: not RAM. */
bool iemu_unit_store(struct iemu_memory *memory, uint64_t address, const void *data,
                     size_t length);

#endif
