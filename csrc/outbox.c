#include "machine.h"

bool iemu_outbox_put(struct iemu_machine *machine, struct iemu_message *message)
{
    struct iemu_outbox *outbox = &machine->outbox;

    if (outbox->count == outbox->capacity)
        return false;
    message->time = machine->clock.now;
    outbox->ring[(outbox->first + outbox->count++) % outbox->capacity] = *message;
    if (iemu_unlikely(machine->journal != NULL))
        iemu_journal_message(machine->journal, message);
    if (iemu_tracing(machine))
        iemu_trace_put(machine, (struct iemu_trace_event){.kind = IEMU_TRACE_MESSAGE,
                                                          .address = message->address,
                                                          .requester = message->requester,
                                                          .code = (uint16_t)message->kind});
    return true;
}
