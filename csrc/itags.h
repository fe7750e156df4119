/*
 * Device-TLB invalidations that a unit has sent and that are not answered yet: each has an ITag
 * and a time (VT-d 6.4). AMD-Vi has the same, unseen by software.
 */
#ifndef IEMU_ITAGS_H
#define IEMU_ITAGS_H

#include "clock.h"

#define IEMU_ITAGS 32u /* the width of a completion's ITag vector */

struct iemu_unit;

struct iemu_itag {
    uint64_t deadline; /* ns; UINT64_MAX: none */
    uint64_t command;  /* physical address of the command that asked for it */
    uint16_t requester;
    uint16_t queue;  /* whose limit of outstanding requests it counts for */
    uint8_t answers; /* completions that have named it */
};

struct iemu_itags {
    struct iemu_event event; /* the earliest deadline */
    uint32_t busy;           /* a bit for each that is outstanding */
    bool sending;            /* a completion may come before the request is on its way */
    struct iemu_itag tag[IEMU_ITAGS];
    uint64_t sent;
    uint64_t timed_out;
};

struct iemu_invalidation {
    uint64_t first; /* input addresses */
    uint64_t last;
    uint64_t timeout; /* ns; 0: none */
    uint64_t command;
    uint16_t requester;
    uint16_t queue;
    uint8_t most; /* outstanding at once of this queue; 0: as many as there are ITags */
};

void iemu_itags_init(struct iemu_unit *unit);
/* Forgets what is outstanding. */
void iemu_itags_reset(struct iemu_unit *unit);
/* Asks the function to invalidate. False: no ITag is free for it, nothing was sent. */
bool iemu_itags_send(struct iemu_unit *unit, const struct iemu_invalidation *invalidation);
/*
 * An Invalidation Completion for the ITags whose bits are set; an ITag is free when `count` of
 * them have named it.
 */
void iemu_itags_answer(struct iemu_unit *unit, uint16_t requester, uint32_t tags, uint32_t count);

#endif
