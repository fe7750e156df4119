/* A machine as it stands before it is used, as the first records of a journal. */
#include <stdlib.h>

#include "api.h"
#include "in_flight.h"
#include "introspection.h"

#define MAX_COUNTERS 64u

static bool unit_was_used(struct iemu_unit *unit)
{
    struct iemu_counter counters[MAX_COUNTERS];
    size_t count = iemu_count(unit, counters, MAX_COUNTERS);

    for (size_t i = 0; i < count && i < MAX_COUNTERS; i++) {
        if (counters[i].value)
            return true;
    }
    for (uint32_t i = 0; i < unit->regs.words; i++) {
        if (unit->regs.word[i].value != unit->regs.word[i].reset)
            return true;
    }
    return unit->ops->invalidation_state(unit) != IEMU_INVALIDATION_IDLE;
}

static bool was_used(const struct iemu_machine *machine)
{
    for (uint32_t i = 0; i < machine->units; i++) {
        if (unit_was_used(machine->unit[i]))
            return true;
    }
    for (uint32_t i = 0; i < machine->transactions; i++) {
        if (machine->pool[i].generation || machine->pool[i].state != IEMU_TRANSACTION_FREE)
            return true;
    }
    for (const struct iemu_port *port = machine->ports; port; port = port->next) {
        if (port->tlb && iemu_device_tlb_was_used(port->tlb))
            return true;
    }
    return machine->outbox.count || machine->clock.count;
}

static void tell_ats(const struct iemu_machine *machine, const struct iemu_port *port)
{
    if (!port->tlb)
        return;
    iemu_ats_input(machine, port, &port->tlb->config);
    if (port->tlb->enabled)
        IEMU_INPUT(machine, .kind = IEMU_RECORD_ATS_ENABLE, .size = 1, .number = port->number);
}

static void tell_memory(const struct iemu_machine *machine)
{
    for (uint32_t i = 0; i < machine->memory.ranges; i++) {
        const struct iemu_range *range = &machine->memory.range[i];

        if (range->kind != IEMU_RANGE_REGISTERS)
            IEMU_INPUT(machine,
                       .kind = range->kind == IEMU_RANGE_RAM ? IEMU_RECORD_RAM : IEMU_RECORD_BAR,
                       .number = range->owner, .value = {range->base, range->size});
    }
}

static void tell_units(const struct iemu_machine *machine)
{
    for (uint32_t i = 0; i < machine->units; i++) {
        const struct iemu_unit *unit = machine->unit[i];
        union iemu_any_config config = unit->made_of;

        config.unit.timing = unit->timing;
        iemu_journal_unit(machine->journal, unit->ops->vendor, &config);
    }
}

static void tell_routes(const struct iemu_machine *machine)
{
    for (uint32_t i = 0; i < machine->segments; i++) {
        const struct iemu_route_table *table = machine->route[i];

        for (uint32_t first = 0, last; first < 65536; first = last + 1) {
            for (last = first; last < 65535 && table->unit[last + 1] == table->unit[first];)
                last++;
            if (table->unit[first])
                IEMU_INPUT(machine, .kind = IEMU_RECORD_ROUTE, .size = 1, .id = table->segment,
                           .number = table->unit[first] - 1u, .value = {first, last});
        }
    }
}

static void tell_rules(const struct iemu_machine *machine, const struct iemu_port *port)
{
    for (uint32_t i = 0; i < port->rule_count; i++) {
        const struct iemu_port_rule *rule = &port->rule[i];

        IEMU_INPUT(machine, .kind = IEMU_RECORD_RULE, .size = rule->verdict,
                   .id = rule->address_types, .number = port->number,
                   .value = {rule->first, rule->last, rule->first_requester,
                             rule->last_requester});
    }
}

/* Numbers the ports anew, without those that are gone. */
static void tell_ports(struct iemu_machine *machine)
{
    struct iemu_port *port;

    machine->ports_made = 0;
    for (port = machine->ports; port; port = port->next)
        machine->ports_made++;
    /* The newest is the first in the list. */
    for (uint32_t number = 0; number < machine->ports_made; number++) {
        uint32_t newer = machine->ports_made - 1 - number;

        for (port = machine->ports; newer; newer--)
            port = port->next;
        port->number = number;
        IEMU_INPUT(machine, .kind = IEMU_RECORD_PORT, .id = port->requester, .number = number,
                   .value = {port->segment});
        if (port->fabric_latency || port->memory_latency)
            IEMU_INPUT(machine, .kind = IEMU_RECORD_LATENCY, .number = number,
                       .value = {port->fabric_latency, port->memory_latency});
        tell_rules(machine, port);
        tell_ats(machine, port);
        if (port->removed)
            IEMU_INPUT(machine, .kind = IEMU_RECORD_PORT_REMOVE, .number = number);
    }
}

int iemu_journal_attach(struct iemu_machine *machine, struct iemu_journal *journal)
{
    if (machine->journal || was_used(machine))
        return IEMU_E_STATE;
    machine->journal = journal;
    machine->memory.journal = journal;
    iemu_memory_observe(&machine->memory);
    for (uint32_t i = 0; i < machine->units; i++)
        iemu_unit_choose_translate(machine->unit[i]);
    journal->clock = &machine->clock;
    journal->time = machine->clock.now; /* told with the next input */
    IEMU_INPUT(machine, .kind = IEMU_RECORD_MACHINE,
               .value = {machine->transactions, machine->outbox.capacity});
    journal->time = 0;
    tell_memory(machine);
    tell_units(machine);
    tell_routes(machine);
    tell_ports(machine);
    return IEMU_OK;
}

void iemu_journal_detach(struct iemu_machine *machine)
{
    machine->journal = NULL;
    machine->memory.journal = NULL;
    iemu_memory_observe(&machine->memory);
    for (uint32_t i = 0; i < machine->units; i++)
        iemu_unit_choose_translate(machine->unit[i]);
}
