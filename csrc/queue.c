#include "queue.h"

static bool has_work(const struct iemu_queue *queue)
{
    return queue->in_progress || queue->ops->waits(queue->unit);
}

/* With work there: one state further. False: stalled. */
static inline __attribute__((always_inline)) bool advance(struct iemu_queue *queue)
{
    struct iemu_unit *unit = queue->unit;

    if (queue->in_progress) {
        queue->stalled = !queue->ops->finish(unit, queue->command);
        if (queue->stalled)
            return false;
        queue->in_progress = false;
    } else {
        queue->in_progress = queue->ops->fetch(unit, queue->command);
    }
    if (!queue->in_progress)
        queue->ops->settle(unit);
    return true;
}

static uint64_t latency(const struct iemu_queue *queue)
{
    const struct iemu_timing *timing = &queue->unit->timing;

    if (!queue->in_progress)
        return timing->command;
    if (timing->wait == timing->invalidation)
        return timing->wait;
    return queue->ops->is_wait(queue->command) ? timing->wait : timing->invalidation;
}

void iemu_queue_run(struct iemu_queue *queue)
{
    struct iemu_clock *clock = &queue->unit->machine->clock;

    if (queue->unit->timing.manual)
        iemu_clock_cancel(clock, &queue->event);
    if (queue->unit->timing.manual || queue->event.slot)
        return;
    while (has_work(queue)) {
        uint64_t wait = queue->stalled ? 0 : latency(queue);

        if (wait) {
            iemu_clock_schedule(clock, &queue->event, clock->now + wait);
            return;
        }
        if (!advance(queue))
            return;
    }
}

bool iemu_queue_step(struct iemu_queue *queue)
{
    iemu_clock_cancel(&queue->unit->machine->clock, &queue->event);
    if (!has_work(queue) || !advance(queue))
        return false;
    iemu_queue_run(queue);
    return true;
}

static void come_due(void *owner)
{
    iemu_queue_step(owner);
}

void iemu_queue_init(struct iemu_queue *queue, struct iemu_unit *unit,
                     const struct iemu_queue_ops *ops)
{
    *queue = (struct iemu_queue){
        .unit = unit,
        .ops = ops,
        .event = {.run = come_due, .owner = queue},
    };
}

void iemu_queue_reset(struct iemu_queue *queue)
{
    iemu_clock_cancel(&queue->unit->machine->clock, &queue->event);
    queue->in_progress = false;
    queue->stalled = false;
}

uint32_t iemu_queue_state(const struct iemu_queue *queue)
{
    if (queue->in_progress)
        return IEMU_INVALIDATION_IN_PROGRESS;
    return queue->ops->waits(queue->unit) ? IEMU_INVALIDATION_SUBMITTED : IEMU_INVALIDATION_IDLE;
}
