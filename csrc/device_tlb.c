#include "device_tlb.h"

#include <stdlib.h>
#include <string.h>

#include "fields.h"
#include "in_flight.h"

/* Above the permissions in a line's first quadword, which is the translated page. */
#define LINE_UNTRANSLATED 4ull /* U: only untranslated requests may use the range */

/* ---- life cycle --------------------------------------------------------------------------- */

static void answer_due(void *owner);

int iemu_device_tlb_create(struct iemu_port *port, const struct iemu_ats_config *config)
{
    struct iemu_device_tlb *tlb;
    int error;

    if (port->tlb || port->removed)
        return IEMU_E_STATE;
    if (config->answer > IEMU_ANSWER_ASK)
        return IEMU_E_ARGUMENT;
    tlb = calloc(1, sizeof(*tlb));
    if (!tlb)
        return IEMU_E_NO_MEMORY;
    error = iemu_cache_init(&tlb->cache, &config->geometry);
    if (!error)
        error = iemu_clock_reserve(&port->machine->clock, 1);
    if (error) {
        iemu_cache_free(&tlb->cache);
        free(tlb);
        return error;
    }
    tlb->port = port;
    tlb->config = *config;
    tlb->event = (struct iemu_event){.run = answer_due, .owner = tlb};
    port->tlb = tlb;
    return IEMU_OK;
}

void iemu_device_tlb_remove(struct iemu_device_tlb *tlb)
{
    iemu_clock_cancel(&tlb->port->machine->clock, &tlb->event);
    tlb->count = 0;
    tlb->held = false;
}

void iemu_device_tlb_free(struct iemu_port *port)
{
    struct iemu_device_tlb *tlb = port->tlb;

    if (!tlb)
        return;
    iemu_device_tlb_remove(tlb);
    iemu_clock_release(&port->machine->clock, 1);
    iemu_cache_free(&tlb->cache);
    free(tlb->trail);
    free(tlb);
    port->tlb = NULL;
}

void iemu_device_tlb_enable(struct iemu_device_tlb *tlb, bool on)
{
    if (!on)
        iemu_cache_drop_all(&tlb->cache);
    tlb->enabled = on;
    iemu_port_choose_way(tlb->port);
}

void iemu_device_tlb_drop(struct iemu_device_tlb *tlb, uint64_t first, uint64_t last)
{
    if (!first && last == UINT64_MAX)
        iemu_cache_drop_all(&tlb->cache);
    else
        iemu_cache_drop_range(&tlb->cache, 0, first, last);
}

/* ---- requests to invalidate --------------------------------------------------------------- */

struct iemu_port *iemu_device_tlb_port(struct iemu_unit *unit, uint16_t requester)
{
    for (struct iemu_port *port = unit->machine->ports; port; port = port->next) {
        if (port->requester == requester && port->tlb && !port->removed &&
            iemu_port_unit(port) == unit)
            return port;
    }
    return NULL;
}

int iemu_device_tlb_complete(struct iemu_port *port, uint32_t tags, uint32_t count)
{
    struct iemu_unit *unit = iemu_port_unit(port);

    if (port->removed)
        return IEMU_REMOVED;
    if (!unit || !unit->ops->takes_answers(unit))
        return IEMU_UR;
    iemu_itags_answer(unit, port->requester, tags, count);
    return IEMU_DONE;
}

static bool ask_owner(const struct iemu_device_tlb *tlb, const struct iemu_asked *asked)
{
    struct iemu_message message = {
        .kind = IEMU_MESSAGE_INVALIDATE,
        .address = asked->first,
        .token = asked->tag,
        .owner = tlb->config.owner,
        .segment = tlb->port->segment,
        .requester = tlb->port->requester,
        .size = sizeof(asked->last),
    };

    memcpy(message.data, &asked->last, sizeof(asked->last));
    return iemu_outbox_put(tlb->port->machine, &message);
}

/* False: it has to wait for room in the outbox. */
static bool answer(struct iemu_device_tlb *tlb, const struct iemu_asked *asked)
{
    unsigned tag = asked->tag;

    if (asked->answer == IEMU_ANSWER_ASK)
        return ask_owner(tlb, asked);
    /* What went out translated lands before the completion does (VT-d 7.7). */
    if (!iemu_port_settle(tlb->port))
        return false;
    iemu_device_tlb_drop(tlb, asked->first, asked->last);
    if (asked->answer == IEMU_ANSWER_WRONG_TAG)
        tag = (tag + 1) % IEMU_ITAGS;
    tlb->answers++;
    iemu_device_tlb_complete(tlb->port, 1u << tag, 1);
    return true;
}

static void answer_what_is_due(struct iemu_device_tlb *tlb)
{
    struct iemu_clock *clock = &tlb->port->machine->clock;

    while (tlb->count && tlb->asked[tlb->first].due <= clock->now) {
        /* Out of the ring first: an answer may bring the next request. */
        struct iemu_asked oldest = tlb->asked[tlb->first];

        tlb->first = (tlb->first + 1) % IEMU_ITAGS;
        tlb->count--;
        tlb->held = !answer(tlb, &oldest);
        if (tlb->held) {
            tlb->first = (tlb->first + IEMU_ITAGS - 1) % IEMU_ITAGS;
            tlb->count++;
            return;
        }
    }
    if (tlb->count)
        iemu_clock_schedule(clock, &tlb->event, tlb->asked[tlb->first].due);
}

static void answer_due(void *owner)
{
    answer_what_is_due(owner);
}

void iemu_device_tlb_resume(struct iemu_device_tlb *tlb)
{
    if (tlb->held)
        answer_what_is_due(tlb);
}

void iemu_device_tlb_ask(struct iemu_port *port, unsigned tag, uint64_t first, uint64_t last)
{
    struct iemu_device_tlb *tlb = port->tlb;
    uint64_t due = iemu_later(port->machine->clock.now, tlb->config.delay);
    const struct iemu_asked *newest = &tlb->asked[(tlb->first + tlb->count - 1) % IEMU_ITAGS];

    tlb->requests++;
    /* A function whose queue is full has let earlier ones time out; it loses this one. */
    if (tlb->config.answer == IEMU_ANSWER_NEVER || tlb->count == IEMU_ITAGS)
        return;
    if (tlb->count && newest->due > due)
        due = newest->due; /* answered in order */
    tlb->asked[(tlb->first + tlb->count++) % IEMU_ITAGS] = (struct iemu_asked){
        .first = first,
        .last = last,
        .due = due,
        .tag = (uint8_t)tag,
        .answer = (uint8_t)tlb->config.answer,
    };
    if (!tlb->held)
        answer_what_is_due(tlb);
}

/* ---- translations ------------------------------------------------------------------------- */

uint64_t iemu_translation_entry(const struct iemu_result *result)
{
    unsigned shift = result->page_shift;
    uint64_t entry;

    if (!result->permissions)
        return 0;
    entry = result->permissions | (result->address >> shift << shift);
    /* S: ones from bit 12 up to below the bit that tells the size (pci 6). */
    if (shift > 12)
        entry |= 1ull << 11 | (iemu_low_mask(shift - 1) & ~0xfffull);
    if (result->attributes & IEMU_UNTRANSLATED_ONLY)
        entry |= 1ull << 2;
    if (result->attributes & IEMU_NON_SNOOPED)
        entry |= 1ull << 10;
    return entry;
}

static uint64_t who_of(const struct iemu_request *request)
{
    return request->flags & IEMU_HAS_PASID ? 1ull << 32 | request->pasid : 0;
}

/* Notes on which table entries a line rests; with the detector off, that nobody knows. */
static void note_trail(struct iemu_device_tlb *tlb, const struct iemu_unit *unit,
                       const struct iemu_line *line)
{
    size_t lines = ((size_t)tlb->cache.set_mask + 1) * tlb->cache.ways;

    if (unit->watch && !tlb->trail)
        tlb->trail = calloc(lines, sizeof(*tlb->trail));
    if (tlb->trail)
        tlb->trail[line - tlb->cache.line] =
            unit->watch ? unit->watch->last : (struct iemu_trail){0};
}

static struct iemu_line *fill(struct iemu_device_tlb *tlb, const struct iemu_unit *unit,
                              const struct iemu_request *request, const struct iemu_result *result)
{
    unsigned shift = result->page_shift;
    struct iemu_line *line;

    /* R=W=0 is no translation, and not kept. */
    if (!result->permissions)
        return NULL;
    line = iemu_cache_fill(&tlb->cache, iemu_page_key(request->address, shift), who_of(request),
                           iemu_page_index(request->address, shift), 0);
    line->value[0] = (result->address >> shift << shift) | result->permissions |
                     (result->attributes & IEMU_UNTRANSLATED_ONLY ? LINE_UNTRANSLATED : 0);
    line->flags = result->attributes;
    note_trail(tlb, unit, line);
    return line;
}

/* Sends a translation request, and keeps what comes. */
static struct iemu_line *ask_iommu(struct iemu_device_tlb *tlb, struct iemu_unit *unit,
                                   const struct iemu_request *request, struct iemu_result *result)
{
    struct iemu_request asks = *request;

    asks.address &= ~0xfffull;
    asks.length = 8;
    asks.access = IEMU_READ;
    asks.at = IEMU_TRANSLATION_REQUEST;
    asks.flags &= IEMU_HAS_PASID | IEMU_PRIVILEGED | IEMU_EXECUTE;
    tlb->translations++;
    iemu_fabric_translate(tlb->port, unit, &asks, result);
    return result->outcome == IEMU_TRANSLATION ? fill(tlb, unit, &asks, result) : NULL;
}

/* The detector's look at a translated request that the IOMMU let through. */
static void watch(struct iemu_device_tlb *tlb, struct iemu_unit *unit,
                  const struct iemu_request *request, const struct iemu_line *line,
                  const struct iemu_result *result)
{
    static const struct iemu_trail unknown = {.unknown = true};
    const struct iemu_trail *trail = tlb->trail ? &tlb->trail[line - tlb->cache.line] : NULL;
    struct iemu_result cached = *result;

    cached.attributes = (uint8_t)line->flags;
    cached.permissions = line->value[0] & IEMU_LEAF_PERMISSIONS;
    iemu_watch_device_tlb(unit, request, &cached, trail && trail->count ? trail : &unknown);
}

static bool is_interrupt(const struct iemu_request *request)
{
    return iemu_in_interrupt_range(request->address) && request->access == IEMU_WRITE &&
           request->length == 4 && request->address % 4 == 0;
}

static void go_through(struct iemu_device_tlb *tlb, struct iemu_unit *unit,
                       const struct iemu_request *request, struct iemu_result *result)
{
    struct iemu_request translated = *request;
    const struct iemu_line *line;
    unsigned shift;

    line = iemu_cache_find(&tlb->cache, request->address, who_of(request), &shift);
    if (!line || request->access & ~line->value[0]) {
        line = ask_iommu(tlb, unit, request, result);
        if (result->outcome != IEMU_TRANSLATION)
            return; /* UR, CA */
        /* Nobody is there to use it if the function has gone with its request on the way. */
        if (!line || request->access & ~line->value[0] || tlb->port->removed) {
            result->outcome = IEMU_NO_TRANSLATION;
            return;
        }
        shift = result->page_shift;
    }
    if (line->value[0] & LINE_UNTRANSLATED) {
        iemu_fabric_translate(tlb->port, unit, request, result);
        return;
    }
    translated.at = IEMU_TRANSLATED;
    translated.address = iemu_page_join(line->value[0], request->address, shift);
    iemu_fabric_translate(tlb->port, unit, &translated, result);
    if (iemu_unlikely(unit && unit->watch) && result->outcome == IEMU_MEMORY &&
        !(result->attributes & IEMU_PAST_IOMMU))
        watch(tlb, unit, request, line, result);
}

void iemu_device_tlb_translate(struct iemu_port *port, struct iemu_unit *unit,
                               const struct iemu_request *request, struct iemu_result *result)
{
    struct iemu_device_tlb *tlb = port->tlb;
    bool past = request->flags & IEMU_PAST_DEVICE_TLB;

    if (!past && request->at == IEMU_UNTRANSLATED && !is_interrupt(request)) {
        go_through(tlb, unit, request, result);
        return;
    }
    iemu_fabric_translate(tlb->port, unit, request, result);
    if (!past && result->outcome == IEMU_TRANSLATION) {
        tlb->translations++;
        fill(tlb, unit, request, result);
    }
}

/* ---- introspection ------------------------------------------------------------------------ */

bool iemu_device_tlb_was_used(const struct iemu_device_tlb *tlb)
{
    return tlb->cache.tick || tlb->cache.misses || tlb->translations || tlb->requests;
}

size_t iemu_device_tlb_entries(const struct iemu_device_tlb *tlb, struct iemu_cache_entry *entries,
                               size_t count)
{
    size_t lines = ((size_t)tlb->cache.set_mask + 1) * tlb->cache.ways, live = 0;

    for (size_t i = 0; i < lines; i++) {
        const struct iemu_tag *tag = &tlb->cache.tag[i];
        const struct iemu_line *line = &tlb->cache.line[i];
        uint64_t who = iemu_tag_who(tag);

        if (!iemu_tag_live(&tlb->cache, tag))
            continue;
        if (live++ >= count)
            continue;
        entries[live - 1] = (struct iemu_cache_entry){
            .address = tag->page & ~63ull,
            .output = line->value[0] & ~0xfffull,
            .filled = tag->filled,
            .pasid = (uint32_t)who,
            .requester = tlb->port->requester,
            .cache = IEMU_CACHE_DEVICE_TLB,
            .page_shift = (uint8_t)iemu_key_shift(tag->page),
            .permissions = line->value[0] & IEMU_LEAF_PERMISSIONS,
            .attributes = (uint8_t)line->flags,
        };
    }
    return live;
}

size_t iemu_device_tlb_counters(const struct iemu_device_tlb *tlb, struct iemu_counter *counters,
                                size_t count)
{
    const struct iemu_counter all[] = {
        {"device_tlb_lookup", iemu_cache_hits(&tlb->cache) + tlb->cache.misses},
        {"device_tlb_hit", iemu_cache_hits(&tlb->cache)},
        {"device_tlb_eviction", tlb->cache.evictions},
        {"translation_requests", tlb->translations},
        {"invalidation_requests", tlb->requests},
        {"invalidation_answers", tlb->answers},
    };

    memcpy(counters, all, (count < IEMU_COUNT(all) ? count : IEMU_COUNT(all)) * sizeof(all[0]));
    return IEMU_COUNT(all);
}
