/*
 * The public functions of machines: memory, clock, outbox, routes, trace, journal. Each takes the
 * lock, checks what comes from outside, and calls inside.
 */
#include <stdlib.h>
#include <string.h>

#include "api.h"

/* ---- memory ----------------------------------------------------------------------------- */

int iemu_memory_map(struct iemu_machine *machine, uint64_t base, struct iemu_region *region)
{
    const struct iemu_range range = {.base = base, .region = region, .kind = IEMU_RANGE_RAM};
    LOCKED(machine);

    IEMU_INPUT(machine, .kind = IEMU_RECORD_RAM, .value = {base, iemu_region_size(region)});
    return iemu_returned(machine, iemu_memory_add(&machine->memory, &range));
}

int iemu_memory_map_hollow(struct iemu_machine *machine, uint64_t base, uint64_t size)
{
    const struct iemu_range range = {.base = base, .size = size, .kind = IEMU_RANGE_RAM};
    LOCKED(machine);

    IEMU_INPUT(machine, .kind = IEMU_RECORD_RAM, .value = {base, size});
    return iemu_returned(machine, iemu_memory_add(&machine->memory, &range));
}

int iemu_memory_map_bar(struct iemu_machine *machine, uint64_t base, uint64_t size,
                        uint32_t owner)
{
    const struct iemu_range range = {
        .base = base, .size = size, .kind = IEMU_RANGE_BAR, .owner = owner};
    LOCKED(machine);

    IEMU_INPUT(machine, .kind = IEMU_RECORD_BAR, .number = owner, .value = {base, size});
    return iemu_returned(machine, iemu_memory_add(&machine->memory, &range));
}

int iemu_memory_unmap(struct iemu_machine *machine, uint64_t base)
{
    LOCKED(machine);

    IEMU_INPUT(machine, .kind = IEMU_RECORD_UNMAP, .value = {base});
    return iemu_returned(machine, iemu_memory_drop(&machine->memory, base));
}

static int copy(struct iemu_machine *machine, uint64_t address, uint8_t *out, const uint8_t *in,
                size_t length)
{
    uint64_t last = address + (length - 1);

    if (!length)
        return IEMU_OK;
    if (last < address)
        return IEMU_E_NOT_RAM;
    /* Adjacent regions are one piece to software; look before the first byte moves. */
    for (uint64_t at = address;;) {
        const struct iemu_range *range = iemu_memory_find(&machine->memory, at);
        uint64_t end;

        if (!range || range->kind != IEMU_RANGE_RAM || !range->host)
            return IEMU_E_NOT_RAM;
        end = range->base + (range->size - 1);
        if (end >= last)
            break;
        at = end + 1;
    }
    while (length) {
        const struct iemu_range *range = iemu_memory_find(&machine->memory, address);
        uint64_t offset = address - range->base;
        size_t part = range->size - offset < length ? range->size - offset : length;

        if (out) {
            memcpy(out, range->host + offset, part);
            out += part;
        } else {
            memcpy(range->host + offset, in, part);
            in += part;
        }
        address += part;
        length -= part;
    }
    return IEMU_OK;
}

int iemu_memory_read(struct iemu_machine *machine, uint64_t address, void *data, size_t length)
{
    LOCKED(machine);
    return copy(machine, address, data, NULL, length);
}

int iemu_memory_write(struct iemu_machine *machine, uint64_t address, const void *data,
                      size_t length)
{
    LOCKED(machine);
    return copy(machine, address, NULL, data, length);
}

int iemu_memory_arm_store(struct iemu_machine *machine, uint64_t trigger, uint64_t target,
                          uint64_t value)
{
    struct iemu_memory *memory = &machine->memory;
    LOCKED(machine);

    if (target % 8)
        return IEMU_E_ARGUMENT;
    if (!iemu_memory_ram(memory, target, 8))
        return IEMU_E_NOT_RAM;
    if (memory->armed_count == IEMU_MAX_ARMED)
        return IEMU_E_FULL;
    memory->armed[memory->armed_count++] = (struct iemu_armed_store){trigger, target, value};
    iemu_memory_observe(memory);
    return IEMU_OK;
}

/* ---- clock, outbox, routes, trace ----------------------------------------------------------- */

uint64_t iemu_clock_now(struct iemu_machine *machine)
{
    LOCKED(machine);
    return machine->clock.now;
}

void iemu_clock_advance_to(struct iemu_machine *machine, uint64_t time)
{
    LOCKED(machine);

    if (iemu_unlikely(machine->journal != NULL))
        iemu_journal_run_to(machine->journal, time);
    else
        iemu_clock_run_to(&machine->clock, time);
}

uint64_t iemu_clock_next(struct iemu_machine *machine)
{
    LOCKED(machine);
    return machine->clock.count ? machine->clock.heap[0]->due : UINT64_MAX;
}

size_t iemu_outbox_take(struct iemu_machine *machine, struct iemu_message *messages, size_t count)
{
    struct iemu_outbox *outbox = &machine->outbox;
    size_t taken = 0;
    LOCKED(machine);

    while (taken < count && outbox->count) {
        messages[taken++] = outbox->ring[outbox->first];
        outbox->first = (outbox->first + 1) % outbox->capacity;
        outbox->count--;
    }
    if (taken) {
        IEMU_INPUT(machine, .kind = IEMU_RECORD_TAKE, .number = (uint32_t)taken);
        /* A unit's held event goes before what devices still have to say. */
        for (uint32_t i = 0; i < machine->units; i++)
            machine->unit[i]->ops->resume(machine->unit[i]);
        iemu_dma_resume(machine);
    }
    return taken;
}

size_t iemu_outbox_size(struct iemu_machine *machine)
{
    LOCKED(machine);
    return machine->outbox.count;
}

int iemu_outbox_answer(struct iemu_machine *machine, uint32_t token, const void *data, size_t size)
{
    LOCKED(machine);

    IEMU_INPUT(machine, .kind = IEMU_RECORD_ANSWER, .size = data != NULL, .number = token,
               .value = {size});
    return iemu_returned(machine, iemu_dma_answer(machine, token, data, size));
}

int iemu_route(struct iemu_machine *machine, uint16_t segment, uint16_t first, uint16_t last,
               struct iemu_unit *unit)
{
    LOCKED(machine);

    IEMU_INPUT(machine, .kind = IEMU_RECORD_ROUTE, .size = unit != NULL, .id = segment,
               .number = unit ? unit->number : 0, .value = {first, last});
    return iemu_returned(machine, iemu_machine_set_route(machine, segment, first, last, unit));
}

struct iemu_unit *iemu_routed_unit(struct iemu_machine *machine, uint16_t segment,
                                   uint16_t requester)
{
    LOCKED(machine);
    return iemu_machine_route(machine, segment, requester);
}

size_t iemu_trace_read(struct iemu_machine *machine, struct iemu_trace_event *events,
                       size_t count)
{
    const struct iemu_trace *trace = &machine->trace;
    uint64_t kept;
    LOCKED(machine);

    kept = trace->written < trace->capacity ? trace->written : trace->capacity;
    if (count > kept)
        count = kept;
    for (size_t i = 0; i < count; i++)
        events[i] = trace->ring[(trace->written - count + i) & (trace->capacity - 1)];
    return count;
}

void iemu_trace_enable(struct iemu_machine *machine, bool on)
{
    LOCKED(machine);
    machine->trace.on = on && machine->trace.capacity;
    for (uint32_t i = 0; i < machine->units; i++)
        iemu_unit_choose_translate(machine->unit[i]);
}

/* ---- journal --------------------------------------------------------------------------------- */

int iemu_journal_start(struct iemu_machine *machine, const struct iemu_journal_config *config)
{
    struct iemu_journal *journal;
    int error = IEMU_E_NO_MEMORY;
    LOCKED(machine);

    if (config->capacity < 1024 || config->capacity > 1u << 24)
        return IEMU_E_ARGUMENT;
    journal = calloc(1, sizeof(*journal));
    if (!journal)
        return IEMU_E_NO_MEMORY;
    journal->capacity = config->capacity;
    journal->limit = config->limit;
    journal->until = config->until;
    journal->buffer = calloc(config->capacity, sizeof(*journal->buffer));
    if (journal->buffer)
        error = iemu_journal_attach(machine, journal);
    if (error) {
        free(journal->buffer);
        free(journal);
    }
    return error;
}

size_t iemu_journal_take(struct iemu_machine *machine, struct iemu_record *records, size_t count,
                         uint32_t *end)
{
    struct iemu_journal *journal;
    LOCKED(machine);

    journal = machine->journal;
    *end = IEMU_JOURNAL_OPEN;
    if (!journal)
        return 0;
    if (count > journal->count)
        count = journal->count;
    memcpy(records, journal->buffer, count * sizeof(*records));
    memmove(journal->buffer, journal->buffer + count,
            (journal->count - count) * sizeof(*records));
    journal->count -= count;
    journal->taken += count;
    *end = journal->ended;
    return count;
}

size_t iemu_journal_size(struct iemu_machine *machine)
{
    LOCKED(machine);
    return machine->journal ? machine->journal->count : 0;
}

void iemu_journal_stop(struct iemu_machine *machine)
{
    struct iemu_journal *journal;
    LOCKED(machine);

    journal = machine->journal;
    if (!journal)
        return;
    iemu_journal_detach(machine);
    free(journal->buffer);
    free(journal);
}
