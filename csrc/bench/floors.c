/*
 * What the operations of the core must at least cost. There are no domains, page sizes, reserved
 * bits, statistics, detectors or traces here: one cache of 4 ways x 1024 sets, 4 KiB pages, tables
 * in one piece of RAM. What is left is what an answer needs that is right for that much, and it is
 * checked: each result equals the core's.
 */
#include "floors.h"

#include <stdlib.h>
#include <string.h>

#include "../machine.h"

#define SETS      1024u
#define WAYS      4u
#define REGISTERS 1024u /* 32-bit words of a 4 KiB window */

#define NO_PAGE       UINT64_MAX
#define PAGE_OF(x)    ((x) & ~0xfffull)
#define ENTRY_ADDRESS 0x000ffffffffff000ull
#define ENTRY_ACCESS  3ull
#define RECORD_VALID  (1ull << 63)

struct line {
    uint64_t page; /* of the IOVA; NO_PAGE: empty */
    uint64_t who;  /* requester */
    uint64_t leaf; /* page of the output, permissions in the low bits */
};

struct iemu_floor {
    struct line line[SETS][WAYS];
    uint8_t next_way[SETS]; /* round robin: the cheapest replacement there is */
    uint8_t *ram;
    uint64_t base;
    uint64_t size;
    uint64_t root;
    uint64_t record[2];
    uint32_t registers[REGISTERS];
};

struct iemu_floor *iemu_floor_create(struct iemu_machine *machine, uint64_t root)
{
    const struct iemu_range *range;
    struct iemu_floor *floor;

    pthread_mutex_lock(&machine->lock);
    range = iemu_memory_find(&machine->memory, root);
    pthread_mutex_unlock(&machine->lock);
    if (!range || range->kind != IEMU_RANGE_RAM)
        return NULL;
    floor = aligned_alloc(64, (sizeof(*floor) + 63) & ~(size_t)63);
    if (!floor)
        return NULL;
    memset(floor, 0, sizeof(*floor));
    memset(floor->line, 0xff, sizeof(floor->line));
    floor->ram = range->host;
    floor->base = range->base;
    floor->size = range->size;
    floor->root = root;
    return floor;
}

void iemu_floor_destroy(struct iemu_floor *floor)
{
    free(floor);
}

/* Bounds-checked: whatever tables and descriptors say, no access leaves the RAM. */
static inline uint8_t *ram(const struct iemu_floor *floor, uint64_t address, uint64_t length)
{
    uint64_t offset = address - floor->base;

    return offset < floor->size && length <= floor->size - offset ? floor->ram + offset : NULL;
}

static inline struct line *set_of(struct iemu_floor *floor, uint64_t address)
{
    return floor->line[address >> 12 & (SETS - 1)];
}

static inline void answer(const struct iemu_request *request, uint64_t leaf,
                          struct iemu_result *result)
{
    *result = (struct iemu_result){
        .address = PAGE_OF(leaf) | (request->address & 0xfff),
        .page_shift = 12,
        .permissions = leaf & ENTRY_ACCESS,
    };
}

/* Four dependent loads; the permissions of a path are the AND over it. 0: a fault. */
static inline uint64_t walk(const struct iemu_floor *floor, uint64_t address)
{
    uint64_t table = floor->root, permissions = ENTRY_ACCESS;

    for (unsigned shift = 39;; shift -= 9) {
        const uint8_t *host = ram(floor, table + 8 * (address >> shift & 511), 8);
        uint64_t entry;

        if (!host)
            return 0;
        memcpy(&entry, host, sizeof(entry));
        permissions &= entry;
        if (!(entry & ENTRY_ACCESS))
            return 0;
        table = entry & ENTRY_ADDRESS;
        if (shift == 12)
            return table | permissions;
    }
}

static __attribute__((noinline)) void miss(struct iemu_floor *floor,
                                           const struct iemu_request *request,
                                           struct iemu_result *result)
{
    uint64_t leaf = walk(floor, request->address);
    uint32_t set = request->address >> 12 & (SETS - 1);

    if (request->access & ~leaf) {
        *result = (struct iemu_result){.outcome = IEMU_UNSUPPORTED, .recorded = 1};
        floor->record[0] = PAGE_OF(request->address);
        floor->record[1] = RECORD_VALID | request->requester;
        return;
    }
    floor->line[set][floor->next_way[set]++ % WAYS] =
        (struct line){PAGE_OF(request->address), request->requester, leaf};
    answer(request, leaf, result);
}

__attribute__((noinline)) void iemu_floor_translate(struct iemu_floor *floor,
                                                    const struct iemu_request *request,
                                                    struct iemu_result *result)
{
    const struct line *line = set_of(floor, request->address);
    uint64_t page = PAGE_OF(request->address);

    for (unsigned way = 0; way < WAYS; way++) {
        if (line[way].page == page && line[way].who == request->requester &&
            !(request->access & ~line[way].leaf)) {
            answer(request, line[way].leaf, result);
            return;
        }
    }
    miss(floor, request, result);
}

__attribute__((noinline)) int iemu_floor_dma_read(struct iemu_floor *floor,
                                                  const struct iemu_transfer *transfer,
                                                  uint16_t requester, void *data)
{
    const struct iemu_request request = {
        .address = transfer->address,
        .length = transfer->length,
        .requester = requester,
        .access = transfer->access,
    };
    struct iemu_result result;
    const uint8_t *host;

    iemu_floor_translate(floor, &request, &result);
    host = ram(floor, result.address, request.length);
    if (result.outcome || !host)
        return 1;
    memcpy(data, host, request.length);
    return 0;
}

__attribute__((noinline)) void iemu_floor_invalidate(struct iemu_floor *floor, uint64_t descriptor,
                                                     uint16_t requester)
{
    const uint8_t *host = ram(floor, descriptor, 16);
    uint64_t words[2];
    struct line *line;

    if (!host)
        return;
    memcpy(words, host, sizeof(words));
    line = set_of(floor, words[1]);
    for (unsigned way = 0; way < WAYS; way++) {
        if (line[way].page == PAGE_OF(words[1]) && line[way].who == requester)
            line[way].page = NO_PAGE;
    }
}

__attribute__((noinline)) void iemu_floor_wait(struct iemu_floor *floor, uint64_t descriptor)
{
    const uint8_t *host = ram(floor, descriptor, 16);
    uint64_t words[2];
    uint8_t *status;

    if (!host)
        return;
    memcpy(words, host, sizeof(words));
    status = ram(floor, words[1], 4);
    if (status)
        memcpy(status, (const uint8_t *)words + 4, 4); /* data: bits 63:32 */
}

__attribute__((noinline)) void iemu_floor_clear_record(struct iemu_floor *floor)
{
    floor->record[1] &= ~RECORD_VALID;
}

__attribute__((noinline)) uint32_t iemu_floor_mmio_read(struct iemu_floor *floor, uint32_t offset)
{
    return offset / 4 < REGISTERS ? floor->registers[offset / 4] : 0;
}

void iemu_floor_batch(struct iemu_floor *floor, const struct iemu_request *request,
                      const uint64_t *addresses, struct iemu_result *results, size_t count)
{
    struct iemu_request each = *request;

    for (size_t i = 0; i < count; i++) {
        each.address = addresses[i];
        iemu_floor_translate(floor, &each, &results[i]);
    }
}

int iemu_floor_call(struct iemu_port *port, uint64_t address, const void *data, uint32_t length)
{
    (void)port;
    (void)address;
    (void)data;
    (void)length;
    return 0;
}
