#include "unit.h"

#include <stdlib.h>
#include <string.h>

struct iemu_machine *iemu_machine_create(const struct iemu_machine_config *config, int *error)
{
    struct iemu_machine *machine;

    *error = IEMU_E_ARGUMENT;
    if (!config->transactions || config->transactions > 4096 || config->messages < 64 ||
        config->messages > 65536 || config->trace_events > 1u << 24 ||
        (config->trace_events & (config->trace_events - 1)))
        return NULL;
    *error = IEMU_E_NO_MEMORY;
    machine = calloc(1, sizeof(*machine));
    if (!machine)
        return NULL;
    pthread_mutex_init(&machine->lock, NULL);
    machine->outbox.capacity = config->messages;
    machine->outbox.ring = calloc(config->messages, sizeof(*machine->outbox.ring));
    if (config->trace_events) {
        machine->trace.capacity = config->trace_events;
        machine->trace.ring = calloc(config->trace_events, sizeof(*machine->trace.ring));
    }
    if (!machine->outbox.ring || (config->trace_events && !machine->trace.ring) ||
        iemu_clock_init(&machine->clock, 0) ||
        iemu_dma_init(machine, config->transactions)) {
        iemu_machine_destroy(machine);
        return NULL;
    }
    *error = IEMU_OK;
    return machine;
}

void iemu_machine_destroy(struct iemu_machine *machine)
{
    /* Units first: they take their events out of a heap whose other events the pool owns. */
    for (uint32_t i = 0; i < machine->units; i++)
        machine->unit[i]->ops->destroy(machine->unit[i]);
    iemu_dma_free(machine);
    for (uint32_t i = 0; i < machine->segments; i++)
        free(machine->route[i]);
    iemu_memory_clear(&machine->memory);
    iemu_clock_free(&machine->clock);
    if (machine->journal)
        free(machine->journal->buffer);
    free(machine->journal);
    free(machine->outbox.ring);
    free(machine->trace.ring);
    pthread_mutex_destroy(&machine->lock);
    free(machine);
}

static struct iemu_route_table *find_table(struct iemu_machine *machine, uint16_t segment)
{
    for (uint32_t i = 0; i < machine->segments; i++) {
        if (machine->route[i]->segment == segment)
            return machine->route[i];
    }
    return NULL;
}

struct iemu_unit *iemu_machine_route(struct iemu_machine *machine, uint16_t segment,
                                     uint16_t requester)
{
    const struct iemu_route_table *table = find_table(machine, segment);

    if (!table || !table->unit[requester])
        return NULL;
    return machine->unit[table->unit[requester] - 1];
}

int iemu_machine_set_route(struct iemu_machine *machine, uint16_t segment, uint16_t first,
                           uint16_t last, const struct iemu_unit *unit)
{
    struct iemu_route_table *table = find_table(machine, segment);

    if (first > last)
        return IEMU_E_ARGUMENT;
    if (!table) {
        if (machine->segments == IEMU_MAX_SEGMENTS)
            return IEMU_E_FULL;
        table = calloc(1, sizeof(*table));
        if (!table)
            return IEMU_E_NO_MEMORY;
        table->segment = segment;
        machine->route[machine->segments++] = table;
    }
    memset(table->unit + first, unit ? (int)unit->number + 1 : 0, last - first + 1u);
    machine->routes_changed++;
    return IEMU_OK;
}
