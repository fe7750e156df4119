/* The public functions of device-TLBs: see api.c. */
#include "api.h"
#include "in_flight.h"

void iemu_ats_input(const struct iemu_machine *machine, const struct iemu_port *port,
                    const struct iemu_ats_config *config)
{
    const struct iemu_geometry *geometry = &config->geometry;

    IEMU_INPUT(machine, .kind = IEMU_RECORD_ATS, .size = (uint8_t)config->answer,
               .number = port->number,
               .value = {config->delay, config->owner,
                         geometry->sets | (uint64_t)geometry->ways << 32,
                         geometry->replacement | (uint64_t)geometry->seed << 32});
}

int iemu_ats_create(struct iemu_port *port, const struct iemu_ats_config *config)
{
    LOCKED(port->machine);

    if (config->answer > IEMU_ANSWER_ASK)
        return IEMU_E_ARGUMENT;
    iemu_ats_input(port->machine, port, config);
    return iemu_returned(port->machine, iemu_device_tlb_create(port, config));
}

int iemu_ats_enable(struct iemu_port *port, bool on)
{
    LOCKED(port->machine);

    if (!port->tlb)
        return IEMU_E_STATE;
    IEMU_INPUT(port->machine, .kind = IEMU_RECORD_ATS_ENABLE, .size = on, .number = port->number);
    iemu_device_tlb_enable(port->tlb, on);
    return IEMU_OK;
}

int iemu_ats_set_answer(struct iemu_port *port, uint32_t answer, uint64_t delay)
{
    LOCKED(port->machine);

    if (!port->tlb)
        return IEMU_E_STATE;
    if (answer > IEMU_ANSWER_ASK)
        return IEMU_E_ARGUMENT;
    IEMU_INPUT(port->machine, .kind = IEMU_RECORD_ATS_ANSWER, .size = (uint8_t)answer,
               .number = port->number, .value = {delay});
    port->tlb->config.answer = answer;
    port->tlb->config.delay = delay;
    return IEMU_OK;
}

int iemu_ats_drop(struct iemu_port *port, uint64_t first, uint64_t last)
{
    LOCKED(port->machine);

    if (!port->tlb)
        return IEMU_E_STATE;
    if (first > last)
        return IEMU_E_ARGUMENT;
    IEMU_INPUT(port->machine, .kind = IEMU_RECORD_ATS_DROP, .number = port->number,
               .value = {first, last});
    iemu_device_tlb_drop(port->tlb, first, last);
    return IEMU_OK;
}

int iemu_ats_complete(struct iemu_port *port, uint32_t tags, uint32_t count)
{
    LOCKED(port->machine);

    if (!count || count > 8)
        return IEMU_E_ARGUMENT;
    IEMU_INPUT(port->machine, .kind = IEMU_RECORD_ATS_COMPLETE, .size = (uint8_t)count,
               .number = port->number, .value = {tags});
    return iemu_returned(port->machine, iemu_device_tlb_complete(port, tags, count));
}

size_t iemu_ats_entries(struct iemu_port *port, struct iemu_cache_entry *entries, size_t count)
{
    LOCKED(port->machine);
    return port->tlb ? iemu_device_tlb_entries(port->tlb, entries, count) : 0;
}

size_t iemu_ats_counters(struct iemu_port *port, struct iemu_counter *counters, size_t count)
{
    LOCKED(port->machine);
    return port->tlb ? iemu_device_tlb_counters(port->tlb, counters, count) : 0;
}
