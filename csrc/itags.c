#include "itags.h"

#include "device_tlb.h"
#include "unit.h"

static uint32_t bit(unsigned tag)
{
    return 1u << tag;
}

static void set_timer(struct iemu_unit *unit)
{
    struct iemu_itags *itags = &unit->itags;
    uint64_t earliest = UINT64_MAX;

    for (uint32_t left = itags->busy; left; left &= left - 1) {
        const struct iemu_itag *tag = &itags->tag[__builtin_ctz(left)];

        if (tag->deadline < earliest)
            earliest = tag->deadline;
    }
    if (earliest == UINT64_MAX)
        iemu_clock_cancel(&unit->machine->clock, &itags->event);
    else if (!itags->event.slot || itags->event.due != earliest)
        iemu_clock_schedule(&unit->machine->clock, &itags->event, earliest);
}

static void time_out(void *owner)
{
    struct iemu_unit *unit = owner;
    struct iemu_itags *itags = &unit->itags;

    for (uint32_t left = itags->busy; left; left &= left - 1) {
        unsigned tag = (unsigned)__builtin_ctz(left);

        if (itags->tag[tag].deadline > unit->machine->clock.now)
            continue;
        itags->busy &= ~bit(tag);
        itags->timed_out++;
        unit->ops->invalidation_timed_out(unit, &itags->tag[tag]);
    }
    set_timer(unit);
    unit->ops->resume(unit);
}

void iemu_itags_init(struct iemu_unit *unit)
{
    unit->itags.event = (struct iemu_event){.run = time_out, .owner = unit};
}

void iemu_itags_reset(struct iemu_unit *unit)
{
    iemu_clock_cancel(&unit->machine->clock, &unit->itags.event);
    unit->itags.busy = 0;
}

static bool has_room(const struct iemu_itags *itags, const struct iemu_invalidation *invalidation)
{
    unsigned outstanding = 0;

    if (itags->busy == UINT32_MAX)
        return false;
    for (uint32_t left = itags->busy; left; left &= left - 1)
        outstanding += itags->tag[__builtin_ctz(left)].queue == invalidation->queue;
    return !invalidation->most || outstanding < invalidation->most;
}

bool iemu_itags_send(struct iemu_unit *unit, const struct iemu_invalidation *invalidation)
{
    struct iemu_itags *itags = &unit->itags;
    struct iemu_port *port;
    unsigned tag;

    if (!has_room(itags, invalidation))
        return false;
    tag = (unsigned)__builtin_ctz(~itags->busy);
    itags->busy |= bit(tag);
    itags->sent++;
    itags->tag[tag] = (struct iemu_itag){
        .deadline = invalidation->timeout
                        ? iemu_later(unit->machine->clock.now, invalidation->timeout)
                        : UINT64_MAX,
        .command = invalidation->command,
        .requester = invalidation->requester,
        .queue = invalidation->queue,
    };
    set_timer(unit);
    /* Nobody there: the time-out tells (VT-d 7.6). */
    port = iemu_device_tlb_port(unit, invalidation->requester);
    if (port) {
        itags->sending = true;
        iemu_device_tlb_ask(port, tag, invalidation->first, invalidation->last);
        itags->sending = false;
    }
    return true;
}

void iemu_itags_answer(struct iemu_unit *unit, uint16_t requester, uint32_t tags, uint32_t count)
{
    struct iemu_itags *itags = &unit->itags;
    bool unexpected = false;

    /* What is wrong does not keep the rest from being taken (6.4 step 4). */
    for (; tags; tags &= tags - 1) {
        unsigned tag = (unsigned)__builtin_ctz(tags);

        if (!(itags->busy & bit(tag)) || itags->tag[tag].requester != requester)
            unexpected = true;
        else if (++itags->tag[tag].answers >= count)
            itags->busy &= ~bit(tag);
    }
    set_timer(unit);
    if (unexpected)
        unit->ops->unexpected_answer(unit, requester);
    if (!itags->sending)
        unit->ops->resume(unit);
}
