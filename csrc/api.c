/*
 * The public functions: each takes the machine's lock, checks what comes from outside, and calls
 * inside. Nothing below this file locks.
 */
#include <string.h>

#include "dma.h"
#include "introspection.h"
#include "unit.h"
#include "vendor.h"

struct guard {
    pthread_mutex_t *lock;
};

static inline void unlock(struct guard *guard)
{
    pthread_mutex_unlock(guard->lock);
}

/* Holds the machine's lock to the end of the enclosing block. */
#define LOCKED(machine)                                                                        \
    struct guard guard __attribute__((cleanup(unlock), unused)) = {&(machine)->lock};          \
    pthread_mutex_lock(guard.lock)

/* ---- memory ----------------------------------------------------------------------------- */

int iemu_memory_map(struct iemu_machine *machine, uint64_t base, struct iemu_region *region)
{
    LOCKED(machine);
    return iemu_memory_add(&machine->memory, &(struct iemu_range){
                                                 .base = base,
                                                 .region = region,
                                                 .kind = IEMU_RANGE_RAM,
                                             });
}

int iemu_memory_map_bar(struct iemu_machine *machine, uint64_t base, uint64_t size,
                        uint32_t owner)
{
    LOCKED(machine);
    return iemu_memory_add(&machine->memory, &(struct iemu_range){
                                                 .base = base,
                                                 .size = size,
                                                 .kind = IEMU_RANGE_BAR,
                                                 .owner = owner,
                                             });
}

int iemu_memory_unmap(struct iemu_machine *machine, uint64_t base)
{
    LOCKED(machine);
    return iemu_memory_drop(&machine->memory, base);
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

        if (!range || range->kind != IEMU_RANGE_RAM)
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
    return iemu_dma_answer(machine, token, data, size);
}

int iemu_route(struct iemu_machine *machine, uint16_t segment, uint16_t first, uint16_t last,
               struct iemu_unit *unit)
{
    LOCKED(machine);
    return iemu_machine_set_route(machine, segment, first, last, unit);
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

/* ---- ports and DMA -------------------------------------------------------------------------- */

struct iemu_port *iemu_port_create(struct iemu_machine *machine, uint16_t segment,
                                   uint16_t requester, int *error)
{
    struct iemu_port *port;
    LOCKED(machine);

    port = iemu_dma_port_create(machine, segment, requester);
    *error = port ? IEMU_OK : IEMU_E_NO_MEMORY;
    return port;
}

void iemu_port_remove(struct iemu_port *port)
{
    LOCKED(iemu_port_machine(port));
    iemu_dma_port_remove(port);
}

void iemu_port_destroy(struct iemu_port *port)
{
    LOCKED(iemu_port_machine(port));
    iemu_dma_port_destroy(port);
}

void iemu_port_set_latency(struct iemu_port *port, uint64_t fabric, uint64_t memory)
{
    LOCKED(iemu_port_machine(port));
    iemu_dma_port_latency(port, fabric, memory);
}

void iemu_port_set_requester(struct iemu_port *port, uint16_t requester)
{
    LOCKED(iemu_port_machine(port));
    iemu_dma_port_requester(port, requester);
}

void iemu_port_in_flight(struct iemu_port *port, uint32_t *fabric, uint32_t *translated)
{
    LOCKED(iemu_port_machine(port));
    iemu_dma_port_in_flight(port, fabric, translated);
}

int iemu_dma(struct iemu_port *port, const struct iemu_transfer *transfer, void *data,
             struct iemu_completion *completion)
{
    int status;
    LOCKED(iemu_port_machine(port));

    status = iemu_dma_transfer(port, transfer, data);
    if (status >= 0)
        iemu_dma_port_completion(port, completion);
    return status;
}

int iemu_dma_read(struct iemu_port *port, uint64_t address, void *data, uint32_t length)
{
    const struct iemu_transfer transfer = {
        .address = address, .length = length, .access = IEMU_READ};
    LOCKED(iemu_port_machine(port));

    return iemu_dma_transfer(port, &transfer, data);
}

int iemu_dma_write(struct iemu_port *port, uint64_t address, const void *data, uint32_t length)
{
    const struct iemu_transfer transfer = {
        .address = address, .length = length, .access = IEMU_WRITE};
    LOCKED(iemu_port_machine(port));

    return iemu_dma_transfer(port, &transfer, (void *)data);
}

void iemu_dma_last(struct iemu_port *port, struct iemu_completion *completion)
{
    LOCKED(iemu_port_machine(port));
    iemu_dma_port_completion(port, completion);
}

int iemu_dma_take(struct iemu_port *port, uint32_t token, void *data,
                  struct iemu_completion *completion)
{
    LOCKED(iemu_port_machine(port));
    return iemu_dma_collect(port, token, data, completion);
}

/* ---- units ------------------------------------------------------------------------------------ */

struct iemu_unit *iemu_vtd_create(struct iemu_machine *machine,
                                  const struct iemu_vtd_config *config, int *error)
{
    LOCKED(machine);
    return vtd_create(machine, config, error);
}

struct iemu_unit *iemu_amdvi_create(struct iemu_machine *machine,
                                    const struct iemu_amdvi_config *config, int *error)
{
    LOCKED(machine);
    return amdvi_create(machine, config, error);
}

uint32_t iemu_unit_number(struct iemu_unit *unit)
{
    return unit->number;
}

/* An access that the specifications leave undefined reads 0 and writes nothing (VT-d 2.1). */
static bool acceptable(const struct iemu_unit *unit, uint64_t offset, uint32_t size)
{
    return (size == 4 || size == 8) && offset % size == 0 && offset < unit->window;
}

uint64_t iemu_mmio_read(struct iemu_unit *unit, uint64_t offset, uint32_t size)
{
    uint64_t value;
    LOCKED(unit->machine);

    if (!acceptable(unit, offset, size))
        return 0;
    value = unit->ops->mmio_read(unit, (uint32_t)offset, size);
    if (iemu_tracing(unit->machine))
        iemu_trace_put(unit->machine, (struct iemu_trace_event){.kind = IEMU_TRACE_MMIO_READ,
                                                                .address = offset,
                                                                .a = value,
                                                                .code = (uint16_t)size,
                                                                .unit = (uint16_t)unit->number});
    return value;
}

void iemu_mmio_write(struct iemu_unit *unit, uint64_t offset, uint32_t size, uint64_t value)
{
    LOCKED(unit->machine);

    if (!acceptable(unit, offset, size))
        return;
    if (iemu_tracing(unit->machine))
        iemu_trace_put(unit->machine, (struct iemu_trace_event){.kind = IEMU_TRACE_MMIO_WRITE,
                                                                .address = offset,
                                                                .a = value,
                                                                .code = (uint16_t)size,
                                                                .unit = (uint16_t)unit->number});
    unit->ops->mmio_write(unit, (uint32_t)offset, size, value);
}

void iemu_translate(struct iemu_unit *unit, const struct iemu_request *request,
                    struct iemu_result *result)
{
    LOCKED(unit->machine);
    unit->translate(unit, request, result);
}

void iemu_translate_batch(struct iemu_unit *unit, const struct iemu_request *request,
                          const uint64_t *addresses, struct iemu_result *results, size_t count)
{
    struct iemu_request each = *request;
    LOCKED(unit->machine);

    for (size_t i = 0; i < count; i++) {
        each.address = addresses[i];
        unit->translate(unit, &each, &results[i]);
    }
}

void iemu_unit_reset(struct iemu_unit *unit, uint32_t kind)
{
    LOCKED(unit->machine);
    unit->ops->reset(unit, kind);
}

bool iemu_unit_step(struct iemu_unit *unit)
{
    LOCKED(unit->machine);
    return unit->ops->step(unit);
}

uint32_t iemu_unit_invalidation_state(struct iemu_unit *unit)
{
    LOCKED(unit->machine);
    return unit->ops->invalidation_state(unit);
}

void iemu_unit_set_timing(struct iemu_unit *unit, const struct iemu_timing *timing)
{
    LOCKED(unit->machine);
    unit->timing = *timing;
    unit->ops->resume(unit);
}

size_t iemu_unit_entries(struct iemu_unit *unit, uint32_t id, struct iemu_cache_entry *entries,
                         size_t count)
{
    const struct iemu_cache *cache;
    size_t lines, live = 0;
    LOCKED(unit->machine);

    if (id >= IEMU_CACHES)
        return 0;
    cache = &unit->cache[id];
    lines = ((size_t)cache->set_mask + 1) * cache->ways;
    for (size_t i = 0; i < lines; i++) {
        struct iemu_cache_entry *entry;

        if (!iemu_tag_live(cache, &cache->tag[i]))
            continue;
        if (live++ >= count)
            continue;
        entry = &entries[live - 1];
        *entry = (struct iemu_cache_entry){
            .filled = cache->tag[i].filled,
            .domain = cache->line[i].domain,
            .cache = (uint8_t)id,
        };
        unit->ops->describe(unit, id, &cache->tag[i], &cache->line[i], entry);
    }
    return live;
}

size_t iemu_unit_counters(struct iemu_unit *unit, struct iemu_counter *counters, size_t count)
{
    LOCKED(unit->machine);
    return iemu_count(unit, counters, count);
}

int iemu_unit_watch(struct iemu_unit *unit, bool on)
{
    int error = IEMU_OK;
    LOCKED(unit->machine);

    if (on && !unit->watch)
        error = iemu_watch_start(unit);
    else if (!on)
        iemu_watch_stop(unit);
    iemu_unit_choose_translate(unit);
    return error;
}

size_t iemu_unit_stale_uses(struct iemu_unit *unit, struct iemu_stale_use *uses, size_t count,
                            uint64_t *lost)
{
    struct iemu_watch *watch;
    size_t taken = 0;
    LOCKED(unit->machine);

    *lost = 0;
    watch = unit->watch;
    if (!watch)
        return 0;
    while (taken < count && watch->count) {
        uses[taken++] = watch->use[watch->first];
        watch->first = (watch->first + 1) % IEMU_STALE_USES;
        watch->count--;
    }
    *lost = watch->lost;
    watch->lost = 0;
    return taken;
}

bool iemu_unit_has_field(struct iemu_unit *unit, size_t field)
{
    return unit->ops->has_field(unit, field);
}

uint32_t iemu_unit_register_offset(struct iemu_unit *unit, size_t reg)
{
    return unit->ops->register_offset(unit, reg);
}

/* ---- exported tables -------------------------------------------------------------------------- */

static const struct iemu_vendor_tables *tables_of(uint32_t vendor)
{
    return vendor == IEMU_AMDVI ? &amdvi_tables : &vtd_tables;
}

const struct iemu_register_info *iemu_registers(uint32_t vendor, size_t *count)
{
    *count = tables_of(vendor)->register_count;
    return tables_of(vendor)->registers;
}

const struct iemu_field_info *iemu_fields(uint32_t vendor, size_t *count)
{
    *count = tables_of(vendor)->field_count;
    return tables_of(vendor)->fields;
}

const struct iemu_fault_info *iemu_faults(uint32_t vendor, size_t *count)
{
    *count = tables_of(vendor)->fault_count;
    return tables_of(vendor)->faults;
}
