#include "machine.h"

void iemu_trace_put(struct iemu_machine *machine, struct iemu_trace_event event)
{
    struct iemu_trace *trace = &machine->trace;

    event.time = machine->clock.now;
    event.sequence = trace->written;
    trace->ring[trace->written++ & (trace->capacity - 1)] = event;
}
