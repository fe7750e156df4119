/* What the fabric between a port and any IOMMU decides: see struct iemu_port_rule. */
#include <stdlib.h>

#include "dma.h"
#include "in_flight.h"

static bool valid(const struct iemu_port_rule *rule)
{
    return rule->first <= rule->last && rule->first_requester <= rule->last_requester &&
           rule->address_types && rule->address_types < 1u << (IEMU_AT_RESERVED + 1) &&
           (rule->verdict == IEMU_RULE_PEER || rule->verdict == IEMU_RULE_REFUSE);
}

int iemu_dma_port_add_rule(struct iemu_port *port, const struct iemu_port_rule *rule)
{
    struct iemu_port_rule *rules;

    if (!valid(rule))
        return IEMU_E_ARGUMENT;
    if (port->rule_count == IEMU_MAX_RULES)
        return IEMU_E_FULL;
    rules = realloc(port->rule, (port->rule_count + 1u) * sizeof(*rules));
    if (!rules)
        return IEMU_E_NO_MEMORY;
    port->rule = rules;
    port->rule[port->rule_count++] = *rule;
    iemu_port_choose_way(port);
    return IEMU_OK;
}

void iemu_dma_port_clear_rules(struct iemu_port *port)
{
    free(port->rule);
    port->rule = NULL;
    port->rule_count = 0;
    iemu_port_choose_way(port);
}

static bool matches(const struct iemu_port_rule *rule, const struct iemu_request *request)
{
    return rule->address_types >> request->at & 1 && request->address >= rule->first &&
           request->address <= rule->last && request->requester >= rule->first_requester &&
           request->requester <= rule->last_requester;
}

bool iemu_port_decide(const struct iemu_port *port, const struct iemu_request *request,
                      struct iemu_result *result)
{
    for (uint32_t i = 0; i < port->rule_count; i++) {
        const struct iemu_port_rule *rule = &port->rule[i];

        if (!matches(rule, request))
            continue;
        *result = (struct iemu_result){
            .address = request->address,
            .page_shift = 12,
            .attributes = IEMU_PAST_IOMMU,
        };
        /* A peer is no translation agent. */
        if (rule->verdict == IEMU_RULE_REFUSE || request->at == IEMU_TRANSLATION_REQUEST)
            result->outcome = IEMU_UNSUPPORTED;
        else
            result->permissions = IEMU_READ | IEMU_WRITE;
        return true;
    }
    return false;
}
