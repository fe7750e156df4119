#include "unit.h"

#include <stdlib.h>
#include <string.h>

static size_t lines_of(const struct iemu_cache *cache)
{
    return ((size_t)cache->set_mask + 1) * cache->ways;
}

int iemu_watch_start(struct iemu_unit *unit)
{
    struct iemu_watch *watch = calloc(1, sizeof(*watch));

    if (!watch)
        return IEMU_E_NO_MEMORY;
    for (uint32_t i = 0; i < IEMU_CACHES; i++) {
        if (!unit->cache[i].line)
            continue;
        watch->trail[i] = calloc(lines_of(&unit->cache[i]), sizeof(*watch->trail[i]));
        if (!watch->trail[i]) {
            unit->watch = watch;
            iemu_watch_stop(unit);
            return IEMU_E_NO_MEMORY;
        }
    }
    unit->watch = watch;
    return IEMU_OK;
}

void iemu_watch_stop(struct iemu_unit *unit)
{
    if (!unit->watch)
        return;
    for (uint32_t i = 0; i < IEMU_CACHES; i++)
        free(unit->watch->trail[i]);
    free(unit->watch);
    unit->watch = NULL;
}

void iemu_trail_append(struct iemu_trail *trail, uint8_t level, uint64_t entry,
                       const uint64_t *value, unsigned words)
{
    struct iemu_trail_step *step;

    if (trail->count == IEMU_TRAIL_STEPS)
        return;
    step = &trail->step[trail->count++];
    *step = (struct iemu_trail_step){.entry = entry, .level = level};
    memcpy(step->value, value, words * sizeof(*value));
}

void iemu_trail_store(struct iemu_unit *unit, uint32_t cache, const struct iemu_line *line,
                      const struct iemu_trail *trail)
{
    unit->watch->trail[cache][line - unit->cache[cache].line] = *trail;
}

void iemu_trail_recall(struct iemu_unit *unit, uint32_t cache, const struct iemu_line *line,
                       struct iemu_trail *trail, unsigned keep)
{
    const struct iemu_trail *stored =
        &unit->watch->trail[cache][line - unit->cache[cache].line];
    trail->cached = true;
    trail->cache = (uint8_t)cache;
    trail->count = (uint8_t)keep;
    /* A line filled before the watch was on left no trail. */
    if (!stored->count || stored->unknown)
        trail->unknown = true;
    for (unsigned i = keep; i < stored->count; i++)
        trail->step[trail->count++] = stored->step[i];
}

static bool same_answer(const struct iemu_result *a, const struct iemu_result *b)
{
    return a->outcome == b->outcome && a->fault == b->fault &&
           (a->outcome != IEMU_MEMORY ||
            (a->address == b->address && a->attributes == b->attributes));
}

static const struct iemu_trail_step *step_of_level(const struct iemu_trail *trail, uint8_t level)
{
    for (unsigned i = 0; i < trail->count; i++) {
        if (trail->step[i].level == level)
            return &trail->step[i];
    }
    return NULL;
}

static void changed(struct iemu_stale_use *use, const struct iemu_trail_step *before,
                    const struct iemu_trail_step *after, unsigned word)
{
    use->level = after->level;
    use->entry = after->entry + 8 * word;
    use->before = before->value[word];
    use->after = after->value[word];
}

/* A register, not an entry, leads elsewhere: before and after are the first entry's addresses. */
static struct iemu_stale_use register_changed(const struct iemu_stale_use *use, uint64_t before,
                                              uint64_t after)
{
    struct iemu_stale_use result = *use;

    result.level = IEMU_LEVEL_REGISTER;
    result.before = before;
    result.after = after;
    return result;
}

/* The outermost step in which the two trails part; parts without a trail stay unknown. */
static void find_change(struct iemu_stale_use *use, const struct iemu_trail *used,
                        const struct iemu_trail *now)
{
    if (!now->count && used->count) /* no table is reached at all any more */
        *use = register_changed(use, used->step[0].entry, 0);
    for (unsigned i = 0; i < used->count; i++) {
        const struct iemu_trail_step *before = &used->step[i];
        const struct iemu_trail_step *after = step_of_level(now, before->level);

        if (!after)
            continue;
        if (before->entry != after->entry) {
            /* Another entry was reached: what points here was changed. */
            if (used->unknown)
                return;
            if (i)
                changed(use, &used->step[i - 1], &now->step[i - 1], 0);
            else
                *use = register_changed(use, before->entry, after->entry);
            return;
        }
        for (unsigned word = 0; word < 4; word++) {
            if (before->value[word] != after->value[word]) {
                changed(use, before, after, word);
                return;
            }
        }
    }
}

void iemu_watch_compare(struct iemu_unit *unit, const struct iemu_request *request,
                        const struct iemu_result *cached, const struct iemu_trail *used,
                        const struct iemu_result *fresh, const struct iemu_trail *now,
                        uint32_t (*owed)(struct iemu_unit *unit,
                                         const struct iemu_stale_use *use))
{
    struct iemu_stale_use use = {
        .request = *request,
        .cached = *cached,
        .fresh = *fresh,
        .cache = used->cache,
        .level = IEMU_LEVEL_UNKNOWN,
    };

    if (!used->cached || same_answer(cached, fresh))
        return;
    find_change(&use, used, now);
    use.owed = owed(unit, &use);
    iemu_watch_report(unit, &use);
}

void iemu_watch_device_tlb(struct iemu_unit *unit, const struct iemu_request *request,
                           const struct iemu_result *cached, const struct iemu_trail *used)
{
    struct iemu_stale_use use = {
        .request = *request,
        .cached = *cached,
        .cache = IEMU_CACHE_DEVICE_TLB,
        .level = IEMU_LEVEL_UNKNOWN,
    };
    struct iemu_request asks = *request;
    struct iemu_second_look before;
    struct iemu_trail now = {0};

    asks.access = IEMU_READ;
    asks.at = IEMU_TRANSLATION_REQUEST;
    before = iemu_watch_begin(unit);
    unit->ops->look_again(unit, &asks, &use.fresh, &now);
    iemu_watch_end(unit, before);
    if (use.fresh.outcome == IEMU_MEMORY && !(request->access & ~use.fresh.permissions) &&
        use.fresh.address == cached->address && use.fresh.attributes == cached->attributes)
        return;
    find_change(&use, used, &now);
    use.owed = use.level && use.level < IEMU_LEVEL_CONTEXT ? IEMU_OWED_DEVICE_TLB_PAGE
                                                           : IEMU_OWED_DEVICE_TLB_ALL;
    iemu_watch_report(unit, &use);
}

struct iemu_second_look iemu_watch_begin(struct iemu_unit *unit)
{
    struct iemu_memory *memory = &unit->machine->memory;
    struct iemu_second_look before = {unit->statistics.memory_reads, memory->observed};

    memory->observed = false;
    return before;
}

void iemu_watch_end(struct iemu_unit *unit, struct iemu_second_look before)
{
    unit->machine->memory.observed = before.observed;
    unit->statistics.memory_reads = before.memory_reads;
}

void iemu_watch_report(struct iemu_unit *unit, const struct iemu_stale_use *use)
{
    struct iemu_watch *watch = unit->watch;
    struct iemu_stale_use *slot;

    if (watch->count == IEMU_STALE_USES) {
        watch->lost++;
        return;
    }
    slot = &watch->use[(watch->first + watch->count++) % IEMU_STALE_USES];
    *slot = *use;
    slot->time = unit->machine->clock.now;
    slot->invalidation = (uint8_t)unit->ops->invalidation_state(unit);
}

bool iemu_watch_still_stale(const struct iemu_unit *unit, uint32_t cache,
                            const struct iemu_line *line, const struct iemu_stale_use *use)
{
    const struct iemu_trail *trail = &unit->watch->trail[cache][line - unit->cache[cache].line];

    if (!trail->count)
        return true; /* cached before the watch was on: nothing clears it of suspicion */
    if (use->level == IEMU_LEVEL_REGISTER)
        return trail->step[0].entry != use->after;
    for (unsigned i = 0; i < trail->count; i++) {
        const struct iemu_trail_step *step = &trail->step[i];

        if (step->level == use->level)
            return use->entry - step->entry >= sizeof(step->value) ||
                   step->value[(use->entry - step->entry) / 8] != use->after;
    }
    return true;
}
