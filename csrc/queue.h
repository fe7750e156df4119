/*
 * A queue of invalidation commands, whatever their format. Each is submitted, in progress,
 * complete; what moves it is virtual time, or a caller's step. One code path serves both.
 */
#ifndef IEMU_QUEUE_H
#define IEMU_QUEUE_H

#include "unit.h"

struct iemu_queue_ops {
    /* Whether a command is at the head and may be fetched. */
    bool (*waits)(const struct iemu_unit *unit);
    /* Fetches and checks it; does not move the head. False: reported, nothing is in progress. */
    bool (*fetch)(struct iemu_unit *unit, uint64_t command[2]);
    /*
     * Has its effect and moves the head on, or reports why it cannot. False: a drain waits for
     * room in the outbox; nothing has happened, and the command stays in progress.
     */
    bool (*finish)(struct iemu_unit *unit, const uint64_t command[2]);
    /* Whether it is a wait descriptor or COMPLETION_WAIT: which latency it has. */
    bool (*is_wait)(const uint64_t command[2]);
    /* Called with nothing in progress: a disable that had to wait for that takes effect. */
    void (*settle)(struct iemu_unit *unit);
};

struct iemu_queue {
    struct iemu_unit *unit;
    const struct iemu_queue_ops *ops;
    struct iemu_event event;
    uint64_t command[2];
    bool in_progress;
    bool stalled; /* its time has come, but a drain is not over */
};

void iemu_queue_init(struct iemu_queue *queue, struct iemu_unit *unit,
                     const struct iemu_queue_ops *ops);
/* Forgets what is in progress. */
void iemu_queue_reset(struct iemu_queue *queue);
/*
 * Does what takes no time and schedules what does; goes on with what was stalled. Bounded by the
 * commands up to the tail.
 */
void iemu_queue_run(struct iemu_queue *queue);
/* One state further; false if nothing waits. */
bool iemu_queue_step(struct iemu_queue *queue);
/* enum iemu_invalidation_state of the command at the head. */
uint32_t iemu_queue_state(const struct iemu_queue *queue);

#endif
