/*
 * Benchmarks: what operations of the core cost, and the floors beside them. A floor is the least
 * that could be right for the same operation, compiled with the same flags and driven by the same
 * loop in the same process; bench/floors.c shows how little each does.
 * SPDX-License-Identifier: MIT
 */
#ifndef IEMU_BENCH_H
#define IEMU_BENCH_H

#include "iommu_emu.h"

struct iemu_floor;

enum iemu_bench_kind {
    IEMU_BENCH_TRANSLATE = 0,  /* a read of `length` bytes at each address */
    IEMU_BENCH_DMA_READ = 1,   /* the same, with the data */
    IEMU_BENCH_INVALIDATE = 2, /* `invalidation` by queue, at each address: one doorbell each */
    IEMU_BENCH_WAIT = 3,       /* `wait` by queue, and a look at the status word */
    IEMU_BENCH_MAP_UNMAP = 4,  /* map one page, DMA to it, unmap, invalidate it and wait */
    IEMU_BENCH_FAULT = 5,      /* a read that faults, and the clearing of its record */
    IEMU_BENCH_MMIO_READ = 6,  /* iemu_mmio_read of the 4-byte register `reg` */
};

/* One loop's surroundings: a VT-d unit that translates in legacy mode with 4 levels. */
struct iemu_bench {
    struct iemu_unit *unit;
    struct iemu_port *port;    /* a port of `requester` */
    struct iemu_floor *floor;  /* over the same tables */
    const uint64_t *addresses; /* `count` IOVAs, one an operation */
    size_t count;              /* a multiple of 256: then the queue ends where it began */
    uint32_t length;           /* bytes of a DMA, 1..4096 */
    uint16_t requester;
    uint16_t records;          /* fault records, a power of two up to 256 */
    uint32_t reg;              /* offset of the register to read */
    uint32_t tail;             /* offset of the queue's tail register */
    uint32_t record;           /* offset of the first fault record */
    uint64_t queue;            /* physical address of a queue of 256 descriptors */
    uint64_t invalidation[2];  /* descriptor with an address of 0 */
    uint64_t wait[2];          /* descriptor of a status write with data 0 */
    uint64_t status;           /* physical address of its status word */
    uint64_t entry;            /* physical address of the leaf entry of addresses[0] */
    uint64_t leaf;             /* its value when mapped */
    uint64_t checksum;         /* out: of what was done; a floor's is the same */
};

/*
 * Runs `count` operations of `kind`, or of its floor; all under one lock of the machine, but for
 * register reads, which take it one by one. Returns the elapsed nanoseconds of CLOCK_MONOTONIC;
 * 0: an address of the configuration is not RAM.
 */
uint64_t iemu_bench_run(struct iemu_bench *bench, uint32_t kind, bool floor);

/*
 * A floor that walks the 4-level tables at `root`, all in the RAM region that holds `root`. NULL:
 * no memory, or `root` is not in RAM. The region must outlive it.
 */
struct iemu_floor *iemu_floor_create(struct iemu_machine *machine, uint64_t root);
void iemu_floor_destroy(struct iemu_floor *floor);
/* Floor of iemu_translate_batch. */
void iemu_floor_batch(struct iemu_floor *floor, const struct iemu_request *request,
                      const uint64_t *addresses, struct iemu_result *results, size_t count);
/* Floor of a call from Python with the arguments of iemu_dma_write: returns 0. */
int iemu_floor_call(struct iemu_port *port, uint64_t address, const void *data, uint32_t length);

#endif
