#include "unit.h"

#include <string.h>

int iemu_unit_init(struct iemu_unit *unit, struct iemu_machine *machine,
                   const struct iemu_unit_config *config, const struct iemu_unit_ops *ops)
{
    struct iemu_range window = {
        .base = config->base,
        .size = config->window,
        .kind = IEMU_RANGE_REGISTERS,
    };
    int error;

    if (config->window < IEMU_PAGE || config->window > 1u << 24 ||
        (config->window & (config->window - 1)) || config->base & (config->window - 1) ||
        config->host_address_width < 32 || config->host_address_width > 52 ||
        config->iotlb_lookup > IEMU_BY_DOMAIN ||
        (config->fetch_granule != 64 && config->fetch_granule != 128 &&
         config->fetch_granule != 256))
        return IEMU_E_ARGUMENT;
    if (machine->units == IEMU_MAX_UNITS)
        return IEMU_E_FULL;
    unit->ops = ops;
    unit->machine = machine;
    unit->timing = config->timing;
    unit->base = config->base;
    unit->window = config->window;
    unit->granule_words = config->fetch_granule / 64;
    unit->address_width = config->host_address_width;
    unit->iotlb_lookup = config->iotlb_lookup;
    error = iemu_regfile_init(&unit->regs, config->window);
    for (uint32_t i = 0; !error && i < IEMU_CACHES; i++)
        error = iemu_cache_init(&unit->cache[i], &config->geometry[i]);
    if (!error)
        error = iemu_clock_reserve(&machine->clock, 3); /* register command, queue, time-outs */
    if (!error)
        error = iemu_memory_add(&machine->memory, &window);
    if (error) {
        iemu_unit_free(unit);
        return error;
    }
    iemu_unit_choose_translate(unit);
    iemu_itags_init(unit);
    unit->number = machine->units;
    machine->unit[machine->units++] = unit;
    return IEMU_OK;
}

void iemu_unit_free(struct iemu_unit *unit)
{
    iemu_itags_reset(unit);
    iemu_watch_stop(unit);
    iemu_regfile_free(&unit->regs);
    for (uint32_t i = 0; i < IEMU_CACHES; i++)
        iemu_cache_free(&unit->cache[i]);
}

void iemu_unit_abandon(struct iemu_unit *unit)
{
    struct iemu_machine *machine = unit->machine;

    iemu_memory_drop_registers(&machine->memory, unit->base);
    machine->unit[--machine->units] = NULL;
    iemu_unit_free(unit);
}

static void translate_told(struct iemu_unit *unit, const struct iemu_request *request,
                           struct iemu_result *result)
{
    (unit->watch ? unit->ops->translate_watched : unit->ops->translate)(unit, request, result);
    if (unit->machine->journal)
        iemu_journal_translated(unit->machine->journal, request, result);
    if (!iemu_tracing(unit->machine))
        return;
    iemu_trace_put(unit->machine, (struct iemu_trace_event){.kind = IEMU_TRACE_TRANSLATE,
                                                            .address = request->address,
                                                            .a = result->address,
                                                            .b = request->access,
                                                            .requester = request->requester,
                                                            .code = result->fault,
                                                            .unit = (uint16_t)unit->number});
}

void iemu_unit_choose_translate(struct iemu_unit *unit)
{
    bool told = unit->machine->trace.on || unit->machine->journal;

    unit->translate = told          ? translate_told
                      : unit->watch ? unit->ops->translate_watched
                                    : unit->ops->translate;
}

bool iemu_unit_message(struct iemu_unit *unit, uint64_t address, uint32_t data)
{
    struct iemu_message message = {
        .kind = IEMU_MESSAGE_UNIT,
        .address = address,
        .owner = unit->number,
        .size = 4,
    };

    memcpy(message.data, &data, sizeof(data));
    return iemu_outbox_put(unit->machine, &message);
}
