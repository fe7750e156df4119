#include "clock.h"

#include <stdlib.h>

int iemu_clock_init(struct iemu_clock *clock, uint32_t capacity)
{
    *clock = (struct iemu_clock){0};
    return iemu_clock_reserve(clock, capacity);
}

void iemu_clock_free(struct iemu_clock *clock)
{
    free(clock->heap);
}

int iemu_clock_reserve(struct iemu_clock *clock, uint32_t more)
{
    size_t capacity = (size_t)clock->capacity + more;
    struct iemu_event **heap = realloc(clock->heap, (capacity ? capacity : 1) * sizeof(*heap));

    if (!heap)
        return IEMU_E_NO_MEMORY;
    clock->heap = heap;
    clock->capacity = (uint32_t)capacity;
    return IEMU_OK;
}

static bool before(const struct iemu_event *a, const struct iemu_event *b)
{
    return a->due != b->due ? a->due < b->due : a->order < b->order;
}

static void place(struct iemu_clock *clock, uint32_t at, struct iemu_event *event)
{
    clock->heap[at] = event;
    event->slot = at + 1;
}

static void sift_up(struct iemu_clock *clock, uint32_t at)
{
    struct iemu_event *event = clock->heap[at];

    while (at && before(event, clock->heap[(at - 1) / 2])) {
        place(clock, at, clock->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    place(clock, at, event);
}

static void sift_down(struct iemu_clock *clock, uint32_t at)
{
    struct iemu_event *event = clock->heap[at];

    for (;;) {
        uint32_t child = 2 * at + 1;

        if (child >= clock->count)
            break;
        if (child + 1 < clock->count && before(clock->heap[child + 1], clock->heap[child]))
            child++;
        if (!before(clock->heap[child], event))
            break;
        place(clock, at, clock->heap[child]);
        at = child;
    }
    place(clock, at, event);
}

void iemu_clock_cancel(struct iemu_clock *clock, struct iemu_event *event)
{
    struct iemu_event *moved;
    uint32_t at;

    if (!event->slot)
        return;
    at = event->slot - 1;
    event->slot = 0;
    moved = clock->heap[--clock->count];
    if (moved == event)
        return;
    place(clock, at, moved);
    sift_up(clock, at);
    sift_down(clock, moved->slot - 1);
}

void iemu_clock_schedule(struct iemu_clock *clock, struct iemu_event *event, uint64_t due)
{
    iemu_clock_cancel(clock, event);
    event->due = due < clock->now ? clock->now : due;
    event->order = clock->scheduled++;
    place(clock, clock->count, event);
    clock->count++;
    sift_up(clock, clock->count - 1);
}

void iemu_clock_run_to(struct iemu_clock *clock, uint64_t time)
{
    while (clock->count && clock->heap[0]->due <= time) {
        struct iemu_event *event = clock->heap[0];

        if (event->due > clock->now)
            clock->now = event->due;
        iemu_clock_cancel(clock, event);
        event->run(event->owner);
    }
    if (time > clock->now)
        clock->now = time;
}
