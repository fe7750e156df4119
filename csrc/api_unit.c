/* The public functions of units, and the exported tables: see api.c. */
#include <string.h>

#include "api.h"
#include "introspection.h"
#include "vendor.h"

static void begin_unit(struct iemu_machine *machine, uint32_t vendor,
                       const union iemu_any_config *config)
{
    if (iemu_unlikely(machine->journal != NULL))
        iemu_journal_unit(machine->journal, vendor, config);
}

static struct iemu_unit *made(struct iemu_machine *machine, struct iemu_unit *unit,
                              const union iemu_any_config *config, int error)
{
    iemu_returned(machine, error);
    if (unit)
        unit->made_of = *config;
    return unit;
}

struct iemu_unit *iemu_vtd_create(struct iemu_machine *machine,
                                  const struct iemu_vtd_config *config, int *error)
{
    const union iemu_any_config any = {.vtd = *config};
    struct iemu_unit *unit;
    LOCKED(machine);

    begin_unit(machine, IEMU_VTD, &any);
    unit = vtd_create(machine, config, error);
    return made(machine, unit, &any, *error);
}

struct iemu_unit *iemu_amdvi_create(struct iemu_machine *machine,
                                    const struct iemu_amdvi_config *config, int *error)
{
    const union iemu_any_config any = {.amdvi = *config};
    struct iemu_unit *unit;
    LOCKED(machine);

    begin_unit(machine, IEMU_AMDVI, &any);
    unit = amdvi_create(machine, config, error);
    return made(machine, unit, &any, *error);
}

uint32_t iemu_unit_number(struct iemu_unit *unit)
{
    return unit->number;
}

uint32_t iemu_unit_vendor(struct iemu_unit *unit)
{
    return unit->ops->vendor;
}

struct iemu_unit *iemu_machine_unit(struct iemu_machine *machine, uint32_t number)
{
    LOCKED(machine);
    return number < machine->units ? machine->unit[number] : NULL;
}

/* An access that the specifications leave undefined reads 0 and writes nothing (VT-d 2.1). */
static bool acceptable(const struct iemu_unit *unit, uint64_t offset, uint32_t size)
{
    return (size == 4 || size == 8) && offset % size == 0 && offset < unit->window;
}

static IEMU_COLD void access(const struct iemu_unit *unit, uint8_t kind, uint64_t offset,
                             uint32_t size, uint64_t value)
{
    IEMU_INPUT(unit->machine, .kind = kind, .size = (uint8_t)size, .number = unit->number,
               .value = {offset, value});
}

uint64_t iemu_mmio_read(struct iemu_unit *unit, uint64_t offset, uint32_t size)
{
    uint64_t value;
    LOCKED(unit->machine);

    if (!acceptable(unit, offset, size))
        return 0;
    value = unit->ops->mmio_read(unit, (uint32_t)offset, size);
    if (iemu_unlikely(unit->machine->journal != NULL))
        access(unit, IEMU_RECORD_MMIO_READ, offset, size, value);
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
    if (iemu_unlikely(unit->machine->journal != NULL))
        access(unit, IEMU_RECORD_MMIO_WRITE, offset, size, value);
    if (iemu_tracing(unit->machine))
        iemu_trace_put(unit->machine, (struct iemu_trace_event){.kind = IEMU_TRACE_MMIO_WRITE,
                                                                .address = offset,
                                                                .a = value,
                                                                .code = (uint16_t)size,
                                                                .unit = (uint16_t)unit->number});
    unit->ops->mmio_write(unit, (uint32_t)offset, size, value);
}

static IEMU_COLD void begin_translate(const struct iemu_unit *unit,
                                      const struct iemu_request *request)
{
    IEMU_INPUT(unit->machine, .kind = IEMU_RECORD_TRANSLATE, .size = request->access,
               .id = request->requester, .number = unit->number,
               .value = {request->address, request->length, request->pasid, request->flags,
                         request->at});
}

void iemu_translate(struct iemu_unit *unit, const struct iemu_request *request,
                    struct iemu_result *result)
{
    LOCKED(unit->machine);

    if (iemu_unlikely(unit->machine->journal != NULL))
        begin_translate(unit, request);
    unit->translate(unit, request, result);
}

static IEMU_COLD void translate_recorded(struct iemu_unit *unit, struct iemu_request each,
                                         const uint64_t *addresses, struct iemu_result *results,
                                         size_t count)
{
    for (size_t i = 0; i < count; i++) {
        each.address = addresses[i];
        begin_translate(unit, &each);
        unit->translate(unit, &each, &results[i]);
    }
}

void iemu_translate_batch(struct iemu_unit *unit, const struct iemu_request *request,
                          const uint64_t *addresses, struct iemu_result *results, size_t count)
{
    struct iemu_request each = *request;
    LOCKED(unit->machine);

    if (iemu_unlikely(unit->machine->journal != NULL)) {
        translate_recorded(unit, each, addresses, results, count);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        each.address = addresses[i];
        unit->translate(unit, &each, &results[i]);
    }
}

void iemu_unit_reset(struct iemu_unit *unit, uint32_t kind)
{
    LOCKED(unit->machine);

    IEMU_INPUT(unit->machine, .kind = IEMU_RECORD_RESET, .size = (uint8_t)kind,
               .number = unit->number);
    unit->ops->reset(unit, kind);
}

bool iemu_unit_step(struct iemu_unit *unit)
{
    LOCKED(unit->machine);

    IEMU_INPUT(unit->machine, .kind = IEMU_RECORD_STEP, .number = unit->number);
    return iemu_returned(unit->machine, unit->ops->step(unit));
}

uint32_t iemu_unit_invalidation_state(struct iemu_unit *unit)
{
    LOCKED(unit->machine);
    return unit->ops->invalidation_state(unit);
}

void iemu_unit_set_timing(struct iemu_unit *unit, const struct iemu_timing *timing)
{
    LOCKED(unit->machine);

    IEMU_INPUT(unit->machine, .kind = IEMU_RECORD_TIMING, .size = timing->manual,
               .number = unit->number,
               .value = {timing->command, timing->invalidation, timing->wait});
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

/* ---- exported tables ------------------------------------------------------------------------- */

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
