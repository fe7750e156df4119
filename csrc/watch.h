/*
 * The stale-use detector: each translation is done again without caches, and where the two
 * differ the trails say which table level changed behind the cache's back.
 */
#ifndef IEMU_WATCH_H
#define IEMU_WATCH_H

#include "cache.h"

#define IEMU_TRAIL_STEPS 9u /* root, context, up to 6 paging levels, one spare */
#define IEMU_STALE_USES 256u

struct iemu_trail_step {
    uint64_t entry;    /* physical address of the table entry */
    uint64_t value[4]; /* as fetched; unused words 0 */
    uint8_t level;     /* enum iemu_table_level */
};

/* The entries on which one answer rests, outermost first. */
struct iemu_trail {
    uint8_t count;
    uint8_t cache;  /* enum iemu_cache_id that supplied the innermost cached part */
    bool cached;    /* some part came from a cache */
    bool unknown;   /* a part was cached before the watch was on */
    struct iemu_trail_step step[IEMU_TRAIL_STEPS];
};

struct iemu_watch {
    struct iemu_trail *trail[IEMU_CACHES]; /* of each line, by its index */
    struct iemu_trail last; /* of the last request, for what a device-TLB keeps of it */
    struct iemu_stale_use use[IEMU_STALE_USES];
    uint32_t first;
    uint32_t count;
    uint64_t lost;
};

struct iemu_unit;

int iemu_watch_start(struct iemu_unit *unit);
void iemu_watch_stop(struct iemu_unit *unit);

void iemu_trail_append(struct iemu_trail *trail, uint8_t level, uint64_t entry,
                       const uint64_t *value, unsigned words);
void iemu_trail_store(struct iemu_unit *unit, uint32_t cache, const struct iemu_line *line,
                      const struct iemu_trail *trail);
void iemu_trail_recall(struct iemu_unit *unit, uint32_t cache, const struct iemu_line *line,
                       struct iemu_trail *trail, unsigned keep);

/* With the detector off the trail is NULL and these do nothing. */
static inline void iemu_trail_add(struct iemu_trail *trail, uint8_t level, uint64_t entry,
                                  const uint64_t *value, unsigned words)
{
    if (iemu_unlikely(trail != NULL))
        iemu_trail_append(trail, level, entry, value, words);
}

/* The answer so far is about to be cached in `line`. */
static inline void iemu_trail_fill(struct iemu_unit *unit, uint32_t cache,
                                   const struct iemu_line *line, const struct iemu_trail *trail)
{
    if (iemu_unlikely(trail != NULL))
        iemu_trail_store(unit, cache, line, trail);
}

/* `line` answers from here on: its trail replaces what follows the first `keep` steps. */
static inline void iemu_trail_hit(struct iemu_unit *unit, uint32_t cache,
                                  const struct iemu_line *line, struct iemu_trail *trail,
                                  unsigned keep)
{
    if (iemu_unlikely(trail != NULL))
        iemu_trail_recall(unit, cache, line, trail, keep);
}

/*
 * Reports a stale use if `cached` and `fresh` differ in what the device sees. `owed` tells, for
 * the level that changed, which invalidations the vendor's specification asks for.
 */
void iemu_watch_compare(struct iemu_unit *unit, const struct iemu_request *request,
                        const struct iemu_result *cached, const struct iemu_trail *used,
                        const struct iemu_result *fresh, const struct iemu_trail *now,
                        uint32_t (*owed)(struct iemu_unit *unit,
                                         const struct iemu_stale_use *use));

/*
 * Reports a stale use if `cached`, with which a device-TLB translated `request`, is not what the
 * tables say any more; `used` is what it rests on.
 */
void iemu_watch_device_tlb(struct iemu_unit *unit, const struct iemu_request *request,
                           const struct iemu_result *cached, const struct iemu_trail *used);

/*
 * The second look is the detector's, not the device's: between these two it counts nothing, fires
 * no armed store and is not in the journal.
 */
struct iemu_second_look {
    uint64_t memory_reads;
    bool observed;
};
struct iemu_second_look iemu_watch_begin(struct iemu_unit *unit);
void iemu_watch_end(struct iemu_unit *unit, struct iemu_second_look before);

/* Queues a report; time and the state of invalidations are filled in. */
void iemu_watch_report(struct iemu_unit *unit, const struct iemu_stale_use *use);

/* Whether `line`, too, rests on what changed according to `use`. */
bool iemu_watch_still_stale(const struct iemu_unit *unit, uint32_t cache,
                            const struct iemu_line *line, const struct iemu_stale_use *use);

#endif
