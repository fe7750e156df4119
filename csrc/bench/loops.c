/*
 * The loops of the benchmarks. One loop serves an operation and its floor, so that what the loop
 * itself costs is in both; each looks at what came back, so that nothing is optimised away.
 */
#include <string.h>
#include <time.h>

#include "../dma.h"
#include "../unit.h"
#include "floors.h"

#define QUEUE_BYTES 4096u
#define PAGE_BYTES  4096u

/* A loop's configuration with the host addresses that the emulated CPU writes to. */
struct stage {
    const struct iemu_bench *b;
    struct iemu_unit *unit;
    bool floor;
    uint32_t tail;
    uint8_t *queue;
    uint64_t *entry;
    const volatile uint32_t *status;
};

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t translate(struct stage *s)
{
    struct iemu_request request = {
        .length = s->b->length, .requester = s->b->requester, .access = IEMU_READ};
    struct iemu_result result;
    uint64_t sum = 0;

    for (size_t i = 0; i < s->b->count; i++) {
        request.address = s->b->addresses[i];
        if (s->floor)
            iemu_floor_translate(s->b->floor, &request, &result);
        else
            s->unit->translate(s->unit, &request, &result);
        sum += result.address + result.outcome;
    }
    return sum;
}

static int read_once(struct stage *s, uint64_t address, uint8_t *data)
{
    const struct iemu_transfer transfer = {
        .address = address, .length = s->b->length, .access = IEMU_READ};

    return s->floor ? iemu_floor_dma_read(s->b->floor, &transfer, s->b->requester, data)
                    : iemu_dma_transfer(s->b->port, &transfer, data);
}

static uint64_t dma_read(struct stage *s)
{
    uint8_t data[PAGE_BYTES] = {0};
    uint64_t sum = 0;

    for (size_t i = 0; i < s->b->count; i++) {
        sum += (uint64_t)read_once(s, s->b->addresses[i], data);
        sum += data[0];
    }
    return sum;
}

/* What a driver does: store the descriptor; returns its place in the queue. */
static uint32_t queue_put(struct stage *s, uint64_t low, uint64_t high)
{
    const uint64_t descriptor[2] = {low, high};
    uint32_t at = s->tail;

    memcpy(s->queue + at, descriptor, sizeof(descriptor));
    s->tail = (at + sizeof(descriptor)) % QUEUE_BYTES;
    return at;
}

static void doorbell(struct stage *s)
{
    s->unit->ops->mmio_write(s->unit, s->b->tail, 4, s->tail);
}

static uint64_t invalidate(struct stage *s)
{
    const uint64_t *descriptor = s->b->invalidation;

    for (size_t i = 0; i < s->b->count; i++) {
        uint32_t at = queue_put(s, descriptor[0], descriptor[1] | s->b->addresses[i]);

        if (s->floor)
            iemu_floor_invalidate(s->b->floor, s->b->queue + at, s->b->requester);
        else
            doorbell(s);
    }
    return 0;
}

static uint64_t wait(struct stage *s)
{
    uint64_t done = 0;

    for (size_t i = 1; i <= s->b->count; i++) {
        uint32_t at = queue_put(s, s->b->wait[0] | (uint64_t)i << 32, s->b->wait[1]);

        if (s->floor)
            iemu_floor_wait(s->b->floor, s->b->queue + at);
        else
            doorbell(s);
        done += *s->status == (uint32_t)i;
    }
    return done;
}

static uint64_t map_unmap(struct stage *s)
{
    const uint64_t *invalidation = s->b->invalidation, address = s->b->addresses[0];
    uint8_t data[PAGE_BYTES] = {0};
    uint64_t sum = 0;

    for (size_t i = 1; i <= s->b->count; i++) {
        uint32_t first, second;

        __atomic_store_n(s->entry, s->b->leaf, __ATOMIC_RELEASE);
        sum += (uint64_t)read_once(s, address, data) + data[0];
        __atomic_store_n(s->entry, 0, __ATOMIC_RELEASE);
        first = queue_put(s, invalidation[0], invalidation[1] | address);
        second = queue_put(s, s->b->wait[0] | (uint64_t)i << 32, s->b->wait[1]);
        if (s->floor) {
            iemu_floor_invalidate(s->b->floor, s->b->queue + first, s->b->requester);
            iemu_floor_wait(s->b->floor, s->b->queue + second);
        } else {
            doorbell(s);
        }
        sum += *s->status == (uint32_t)i;
    }
    return sum;
}

static uint64_t fault(struct stage *s)
{
    struct iemu_request request = {
        .length = s->b->length, .requester = s->b->requester, .access = IEMU_READ};
    struct iemu_result result;
    uint64_t recorded = 0;

    for (size_t i = 0; i < s->b->count; i++) {
        request.address = s->b->addresses[i];
        if (s->floor) {
            iemu_floor_translate(s->b->floor, &request, &result);
            iemu_floor_clear_record(s->b->floor);
        } else {
            uint32_t record = s->b->record + 16 * (i & (s->b->records - 1u));

            s->unit->translate(s->unit, &request, &result);
            /* F is bit 127, and write-1-to-clear. */
            s->unit->ops->mmio_write(s->unit, record + 12, 4, 1u << 31);
        }
        recorded += result.recorded;
    }
    return recorded;
}

/* Each read takes the lock by itself: one register read is one call, whoever makes it. */
static uint64_t mmio_read(struct stage *s)
{
    uint64_t sum = 0;

    pthread_mutex_unlock(&s->unit->machine->lock);
    for (size_t i = 0; i < s->b->count; i++)
        sum += s->floor ? iemu_floor_mmio_read(s->b->floor, s->b->reg)
                        : iemu_mmio_read(s->unit, s->b->reg, 4);
    pthread_mutex_lock(&s->unit->machine->lock);
    return sum;
}

static uint64_t (*const loops[])(struct stage *) = {
    [IEMU_BENCH_TRANSLATE] = translate, [IEMU_BENCH_DMA_READ] = dma_read,
    [IEMU_BENCH_INVALIDATE] = invalidate, [IEMU_BENCH_WAIT] = wait,
    [IEMU_BENCH_MAP_UNMAP] = map_unmap, [IEMU_BENCH_FAULT] = fault,
    [IEMU_BENCH_MMIO_READ] = mmio_read,
};

uint64_t iemu_bench_run(struct iemu_bench *bench, uint32_t kind, bool floor)
{
    struct iemu_machine *machine = bench->unit->machine;
    struct iemu_memory *memory = &machine->memory;
    struct stage stage = {.b = bench, .unit = bench->unit, .floor = floor};
    uint64_t began, elapsed = 0;

    pthread_mutex_lock(&machine->lock);
    stage.queue = iemu_memory_ram(memory, bench->queue, QUEUE_BYTES);
    stage.entry = (uint64_t *)iemu_memory_ram(memory, bench->entry, 8);
    stage.status = (const uint32_t *)iemu_memory_ram(memory, bench->status, 4);
    if (kind <= IEMU_BENCH_MMIO_READ && bench->length && bench->length <= PAGE_BYTES &&
        stage.queue && stage.entry && stage.status) {
        stage.tail = (uint32_t)stage.unit->ops->mmio_read(stage.unit, bench->tail, 4);
        began = now();
        bench->checksum = loops[kind](&stage);
        elapsed = now() - began;
    }
    pthread_mutex_unlock(&machine->lock);
    return elapsed;
}
