/* The public functions of ports: see api.c. */
#include "api.h"
#include "dma.h"

struct iemu_port *iemu_port_create(struct iemu_machine *machine, uint16_t segment,
                                   uint16_t requester, int *error)
{
    struct iemu_port *port;
    LOCKED(machine);

    IEMU_INPUT(machine, .kind = IEMU_RECORD_PORT, .id = requester, .number = machine->ports_made,
               .value = {segment});
    port = iemu_dma_port_create(machine, segment, requester);
    *error = iemu_returned(machine, port ? IEMU_OK : IEMU_E_NO_MEMORY);
    return port;
}

void iemu_port_remove(struct iemu_port *port)
{
    LOCKED(iemu_port_machine(port));

    IEMU_INPUT(iemu_port_machine(port), .kind = IEMU_RECORD_PORT_REMOVE,
               .number = iemu_port_number(port));
    iemu_dma_port_remove(port);
}

void iemu_port_destroy(struct iemu_port *port)
{
    LOCKED(iemu_port_machine(port));

    IEMU_INPUT(iemu_port_machine(port), .kind = IEMU_RECORD_PORT_DESTROY,
               .number = iemu_port_number(port));
    iemu_dma_port_destroy(port);
}

void iemu_port_set_latency(struct iemu_port *port, uint64_t fabric, uint64_t memory)
{
    LOCKED(iemu_port_machine(port));

    IEMU_INPUT(iemu_port_machine(port), .kind = IEMU_RECORD_LATENCY,
               .number = iemu_port_number(port), .value = {fabric, memory});
    iemu_dma_port_latency(port, fabric, memory);
}

void iemu_port_set_requester(struct iemu_port *port, uint16_t requester)
{
    LOCKED(iemu_port_machine(port));

    IEMU_INPUT(iemu_port_machine(port), .kind = IEMU_RECORD_REQUESTER, .id = requester,
               .number = iemu_port_number(port));
    iemu_dma_port_requester(port, requester);
}

int iemu_port_add_rule(struct iemu_port *port, const struct iemu_port_rule *rule)
{
    LOCKED(iemu_port_machine(port));

    IEMU_INPUT(iemu_port_machine(port), .kind = IEMU_RECORD_RULE, .size = rule->verdict,
               .id = rule->address_types, .number = iemu_port_number(port),
               .value = {rule->first, rule->last, rule->first_requester, rule->last_requester});
    return iemu_returned(iemu_port_machine(port), iemu_dma_port_add_rule(port, rule));
}

void iemu_port_clear_rules(struct iemu_port *port)
{
    LOCKED(iemu_port_machine(port));

    IEMU_INPUT(iemu_port_machine(port), .kind = IEMU_RECORD_NO_RULES,
               .number = iemu_port_number(port));
    iemu_dma_port_clear_rules(port);
}

void iemu_port_in_flight(struct iemu_port *port, uint32_t *fabric, uint32_t *translated)
{
    LOCKED(iemu_port_machine(port));
    iemu_dma_port_in_flight(port, fabric, translated);
}

static void completed(struct iemu_journal *journal, int status,
                      const struct iemu_completion *completion)
{
    iemu_journal_put(journal, (struct iemu_record){
                                  .kind = IEMU_RECORD_COMPLETION,
                                  .value = {(uint64_t)status, completion->done, completion->token,
                                            completion->address, completion->diagnostic},
                              });
}

/* A transfer on a machine with a journal. */
static IEMU_COLD int recorded_transfer(struct iemu_journal *journal, struct iemu_port *port,
                                       const struct iemu_transfer *transfer, void *data)
{
    struct iemu_completion completion = {0};
    int status;

    iemu_journal_input(journal,
                       (struct iemu_record){
                           .kind = IEMU_RECORD_DMA,
                           .size = transfer->access,
                           .number = iemu_port_number(port),
                           .value = {transfer->address, transfer->length, transfer->pasid,
                                     transfer->flags,
                                     transfer->at | transfer->atomic << 8 |
                                         (uint64_t)transfer->posted << 16},
                       });
    status = iemu_dma_transfer(port, transfer, data);
    if (status > 0)
        iemu_dma_port_completion(port, &completion);
    if (status)
        completed(journal, status, &completion);
    return status;
}

static inline int begin_transfer(const struct iemu_machine *machine, struct iemu_port *port,
                                 const struct iemu_transfer *transfer, void *data)
{
    return iemu_unlikely(machine->journal != NULL)
               ? recorded_transfer(machine->journal, port, transfer, data)
               : iemu_dma_transfer(port, transfer, data);
}

int iemu_dma(struct iemu_port *port, const struct iemu_transfer *transfer, void *data,
             struct iemu_completion *completion)
{
    struct iemu_machine *machine = iemu_port_machine(port);
    struct iemu_transfer page;
    int status;
    LOCKED(machine);

    /* A translation request has no address below the page (pci 6). */
    if (iemu_unlikely(transfer->at == IEMU_TRANSLATION_REQUEST)) {
        page = *transfer;
        page.address &= ~0xfffull;
        transfer = &page;
    }
    status = begin_transfer(machine, port, transfer, data);
    if (status >= 0)
        iemu_dma_port_completion(port, completion);
    return status;
}

int iemu_dma_read(struct iemu_port *port, uint64_t address, void *data, uint32_t length)
{
    const struct iemu_transfer transfer = {
        .address = address, .length = length, .access = IEMU_READ};
    struct iemu_machine *machine = iemu_port_machine(port);
    LOCKED(machine);

    return begin_transfer(machine, port, &transfer, data);
}

int iemu_dma_write(struct iemu_port *port, uint64_t address, const void *data, uint32_t length)
{
    const struct iemu_transfer transfer = {
        .address = address, .length = length, .access = IEMU_WRITE};
    struct iemu_machine *machine = iemu_port_machine(port);
    LOCKED(machine);

    return begin_transfer(machine, port, &transfer, (void *)data);
}

void iemu_dma_last(struct iemu_port *port, struct iemu_completion *completion)
{
    LOCKED(iemu_port_machine(port));
    iemu_dma_port_completion(port, completion);
}

int iemu_dma_take(struct iemu_port *port, uint32_t token, void *data,
                  struct iemu_completion *completion)
{
    struct iemu_journal *journal;
    int status;
    LOCKED(iemu_port_machine(port));

    journal = iemu_port_machine(port)->journal;
    status = iemu_dma_collect(port, token, data, completion);
    /* Asking changes nothing as long as the answer is "not yet". */
    if (iemu_unlikely(journal != NULL) && status >= 0 && status != IEMU_PENDING) {
        iemu_journal_input(journal, (struct iemu_record){.kind = IEMU_RECORD_DMA_TAKE,
                                                         .number = iemu_port_number(port),
                                                         .value = {token}});
        completed(journal, status, completion);
    }
    return status;
}
