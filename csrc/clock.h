/* Virtual time and what is due in it. */
#ifndef IEMU_CLOCK_H
#define IEMU_CLOCK_H

#include "iommu_emu.h"

/* An event is embedded in its owner, so scheduling never allocates and never fails. */
struct iemu_event {
    uint64_t due;
    uint64_t order; /* equal times run in the order they were scheduled */
    void (*run)(void *owner);
    void *owner;
    uint32_t slot; /* place in the heap + 1; 0: not scheduled */
};

static inline uint64_t iemu_later(uint64_t now, uint64_t latency)
{
    return now + latency < now ? UINT64_MAX : now + latency;
}

struct iemu_clock {
    uint64_t now;
    uint64_t scheduled;
    struct iemu_event **heap;
    uint32_t count;
    uint32_t capacity;
};

/* `capacity`: events that can be scheduled at once; every owner has exactly one. */
int iemu_clock_init(struct iemu_clock *clock, uint32_t capacity);
void iemu_clock_free(struct iemu_clock *clock);
/* Makes room for more event owners. */
int iemu_clock_reserve(struct iemu_clock *clock, uint32_t more);
/* Owners that are gone, and had nothing scheduled, give their room back. */
static inline void iemu_clock_release(struct iemu_clock *clock, uint32_t less)
{
    clock->capacity -= less;
}
void iemu_clock_schedule(struct iemu_clock *clock, struct iemu_event *event, uint64_t due);
void iemu_clock_cancel(struct iemu_clock *clock, struct iemu_event *event);
void iemu_clock_run_to(struct iemu_clock *clock, uint64_t time);

#endif
