/*
 * The way of a DMA: a transfer is split at pages; each part is a request of its own, with its own
 * fault (VT-d 5.6). With zero latencies both stages of in_flight.h are passed inside the call.
 */
#include "dma.h"
#include "in_flight.h"

#include <stdlib.h>

#define MAX_TRANSFER (16u << 20)

/* ---- the port's side ------------------------------------------------------------------------ */

struct iemu_port *iemu_dma_port_create(struct iemu_machine *machine, uint16_t segment,
                                       uint16_t requester)
{
    struct iemu_port *port = calloc(1, sizeof(*port));

    if (!port)
        return NULL;
    port->machine = machine;
    port->number = machine->ports_made++;
    port->segment = segment;
    port->requester = requester;
    port->routes_seen = UINT64_MAX;
    port->next = machine->ports;
    machine->ports = port;
    return port;
}

void iemu_dma_port_remove(struct iemu_port *port)
{
    struct iemu_machine *machine = port->machine;

    port->removed = true;
    if (port->tlb)
        iemu_device_tlb_remove(port->tlb);
    /* Completions that nobody will take any more. */
    for (uint32_t i = 0; i < machine->transactions; i++) {
        struct iemu_transaction *t = &machine->pool[i];

        if (t->port == port && t->state == IEMU_TRANSACTION_LANDED && t->head == t && !t->open)
            iemu_transaction_release(t);
    }
}

void iemu_dma_port_destroy(struct iemu_port *port)
{
    iemu_dma_port_remove(port);
    port->destroyed = true;
    if (!port->open)
        iemu_port_free(port);
}

struct iemu_machine *iemu_port_machine(struct iemu_port *port)
{
    return port->machine;
}

uint32_t iemu_port_number(const struct iemu_port *port)
{
    return port->number;
}

void iemu_dma_port_latency(struct iemu_port *port, uint64_t fabric, uint64_t memory)
{
    port->fabric_latency = fabric;
    port->memory_latency = memory;
    iemu_port_choose_way(port);
}

void iemu_dma_port_requester(struct iemu_port *port, uint16_t requester)
{
    port->requester = requester;
    port->routes_seen = UINT64_MAX;
    if (port->tlb) /* of another function's translations, so to speak */
        iemu_device_tlb_drop(port->tlb, 0, UINT64_MAX);
}

void iemu_dma_port_completion(const struct iemu_port *port, struct iemu_completion *completion)
{
    *completion = port->last;
}

void iemu_dma_port_in_flight(const struct iemu_port *port, uint32_t *fabric, uint32_t *translated)
{
    *fabric = port->fabric.count;
    *translated = port->translated.count;
}

static uint32_t part_length(uint64_t address, uint32_t left)
{
    uint32_t room = IEMU_PAGE - (uint32_t)(address % IEMU_PAGE);

    return left < room ? left : room;
}

/* Requests that the transfer makes from byte `from` on. */
static uint32_t parts_of(const struct iemu_transfer *transfer, uint32_t from)
{
    uint32_t offset = (uint32_t)((transfer->address + from) % IEMU_PAGE);
    uint32_t left = transfer->length - from;

    return left ? (offset + left + IEMU_PAGE - 1) / IEMU_PAGE : 1;
}

static bool valid(const struct iemu_transfer *transfer)
{
    if (transfer->length > MAX_TRANSFER || !transfer->access || transfer->access > IEMU_ATOMIC ||
        transfer->at > IEMU_AT_RESERVED || transfer->pasid >= 1u << 20 ||
        (transfer->length && transfer->length - 1 > UINT64_MAX - transfer->address) ||
        (transfer->posted && transfer->access != IEMU_WRITE))
        return false;
    /* One translation; another length would be a malformed TLP (VT-d 6.1). */
    if (transfer->at == IEMU_TRANSLATION_REQUEST && transfer->access == IEMU_READ)
        return transfer->length == 8;
    if (transfer->access == IEMU_ATOMIC)
        return (transfer->length == 4 || transfer->length == 8) &&
               transfer->address % transfer->length == 0 && transfer->atomic >= IEMU_FETCH_ADD &&
               transfer->atomic <= IEMU_COMPARE_SWAP;
    return transfer->length || transfer->access == IEMU_READ;
}

static struct iemu_request request_of(const struct iemu_port *port,
                                      const struct iemu_transfer *transfer)
{
    return (struct iemu_request){
        .pasid = transfer->pasid,
        .requester = port->requester,
        .access = transfer->access,
        .at = transfer->at,
        /* The flag is what the length says: it waives permissions. */
        .flags = (transfer->flags & ~(uint32_t)IEMU_ZERO_LENGTH) |
                 (transfer->length ? 0 : IEMU_ZERO_LENGTH),
    };
}

/* Bytes that a part of `length` carries to memory: a compare-and-swap has two operands. */
static uint32_t sent_bytes(const struct iemu_transfer *transfer, uint32_t length)
{
    bool two = transfer->access == IEMU_ATOMIC && transfer->atomic == IEMU_COMPARE_SWAP;

    return two ? 2 * length : length;
}

/* The first failure of a transfer is the one that it reports. */
static void fail(struct iemu_completion *completion, const struct iemu_request *request,
                 const struct iemu_result *result, uint8_t status)
{
    completion->status = status;
    completion->address = request->address;
    completion->fault = result->fault;
    completion->diagnostic = result->diagnostic;
    completion->recorded = result->recorded;
}

static void trace(struct iemu_machine *machine, const struct iemu_request *request,
                  const struct iemu_result *result)
{
    if (iemu_tracing(machine))
        iemu_trace_put(machine, (struct iemu_trace_event){.kind = IEMU_TRACE_DMA,
                                                          .address = request->address,
                                                          .a = result->address,
                                                          .b = request->length,
                                                          .requester = request->requester});
}

static void complete(struct iemu_completion *completion, const struct iemu_transaction *head)
{
    *completion = head->before;
    for (const struct iemu_transaction *t = head; t; t = t->rest) {
        if (t->landed > completion->time)
            completion->time = t->landed;
        if (completion->status)
            continue;
        if (t->status)
            fail(completion, &t->request, &t->result, t->status);
        else
            completion->done += t->request.length;
    }
}

int iemu_dma_collect(struct iemu_port *port, uint32_t token, uint8_t *data,
                     struct iemu_completion *completion)
{
    struct iemu_machine *machine = port->machine;
    struct iemu_transaction *head;

    if ((token & 0xfff) >= machine->transactions)
        return IEMU_E_ARGUMENT;
    head = &machine->pool[token & 0xfff];
    if (head->state == IEMU_TRANSACTION_FREE || head->port != port || head->head != head ||
        head->posted || token != iemu_transaction_token(head, 0))
        return IEMU_E_ARGUMENT;
    if (head->open)
        return IEMU_PENDING;
    complete(completion, head);
    completion->token = token;
    if (head->request.access != IEMU_WRITE && data) {
        for (const struct iemu_transaction *t = head; t; t = t->rest) {
            if (!t->status)
                memcpy(data + t->offset, t->data, t->request.length);
        }
    }
    iemu_transaction_release(head);
    return completion->status;
}

/*
 * Sends the transfer from byte `from` on as transactions; `before` is what came of the parts
 * before it. `translated` is the first part's result if it has passed the IOMMU already and only
 * its delivery had to wait.
 */
static int submit(struct iemu_port *port, const struct iemu_transfer *transfer, uint8_t *data,
                  uint32_t from, const struct iemu_completion *before,
                  const struct iemu_result *translated)
{
    struct iemu_transaction *head = NULL, **link = &head;
    uint64_t arrival = iemu_later(port->machine->clock.now, port->fabric_latency);
    uint32_t at = from;

    do {
        struct iemu_transaction *t = iemu_transaction_take(port);

        *link = t;
        link = &t->rest;
        t->head = head;
        head->open++;
        t->request = request_of(port, transfer);
        t->request.address = transfer->address + at;
        t->request.length = part_length(t->request.address, transfer->length - at);
        t->offset = at;
        t->atomic = transfer->atomic;
        t->posted = transfer->posted;
        if (transfer->access != IEMU_READ)
            memcpy(t->data, data + at, sent_bytes(transfer, t->request.length));
        at += t->request.length;
    } while (at < transfer->length);

    head->before = *before;
    port->last = *before;
    port->last.status = transfer->posted ? IEMU_DONE : IEMU_PENDING;
    port->last.token = iemu_transaction_token(head, 0);
    if (port->fabric.count && arrival < port->last_arrival)
        arrival = port->last_arrival;
    port->last_arrival = arrival;
    for (struct iemu_transaction *t = head, *rest; t; t = rest) {
        rest = t->rest; /* the last part of a posted transfer frees all of them */
        if (t == head && translated)
            iemu_transaction_send_translated(t, translated);
        else
            iemu_transaction_send(t, arrival);
    }
    /* With nothing to wait for it is over already. */
    if (!transfer->posted)
        iemu_dma_collect(port, port->last.token, data, &port->last);
    return port->last.status;
}

/* Both stages at once, for as long as RAM answers; straight: nothing but a unit has a say. */
static inline __attribute__((always_inline)) int
pass_stages(struct iemu_port *port, const struct iemu_transfer *transfer, uint8_t *data,
            bool straight)
{
    struct iemu_machine *machine = port->machine;
    struct iemu_request request = request_of(port, transfer);
    struct iemu_unit *unit = iemu_port_unit(port);
    struct iemu_completion *completion = &port->last;
    struct iemu_result result;
    uint32_t at = 0;

    *completion = (struct iemu_completion){
        .address = transfer->address,
        .time = machine->clock.now,
    };
    request.address = transfer->address;
    do {
        uint8_t *host;

        request.length = part_length(request.address, transfer->length - at);
        if (straight)
            iemu_unit_translate(unit, &request, &result);
        else
            iemu_port_translate(port, unit, &request, &result);
        host = iemu_ram_target(machine, &request, &result);
        if (iemu_likely(host != NULL)) {
            iemu_move(host, data + at, &request, transfer->atomic);
            if (!completion->status)
                completion->done += request.length;
            trace(machine, &request, &result);
        } else if (iemu_status_of(&result)) {
            if (!completion->status)
                fail(completion, &request, &result, iemu_status_of(&result));
        } else if (result.outcome == IEMU_TRANSLATION) {
            iemu_put_translation(data + at, request.length, &result);
            if (!completion->status)
                completion->done += request.length;
        } else if (result.outcome != IEMU_DISCARDED && request.length) {
            if (machine->transactions_free >= parts_of(transfer, at)) {
                struct iemu_completion before = *completion;

                return submit(port, transfer, data, at, &before, &result);
            }
            /* The device has to send the rest again. */
            if (!completion->status)
                fail(completion, &request, &result, IEMU_BUSY);
            return completion->status;
        }
        at += request.length;
        request.address += request.length;
    } while (at < transfer->length);
    return completion->status;
}

static int pass_straight(struct iemu_port *port, const struct iemu_transfer *transfer,
                         uint8_t *data)
{
    return pass_stages(port, transfer, data, true);
}

static __attribute__((noinline)) int
pass_by_detour(struct iemu_port *port, const struct iemu_transfer *transfer, uint8_t *data)
{
    return pass_stages(port, transfer, data, false);
}

int iemu_dma_transfer(struct iemu_port *port, const struct iemu_transfer *transfer, void *data)
{
    struct iemu_machine *machine = port->machine;
    struct iemu_completion none = {.address = transfer->address};

    if (iemu_unlikely(!valid(transfer)))
        return IEMU_E_ARGUMENT;
    if (iemu_unlikely(port->removed)) {
        none.status = IEMU_REMOVED;
    } else if (iemu_likely(!port->detours && !port->fabric.count && !port->translated.count)) {
        return pass_straight(port, transfer, data);
    } else if (iemu_port_is_fast(port) && !port->fabric.count && !port->translated.count) {
        return pass_by_detour(port, transfer, data);
    } else if (parts_of(transfer, 0) > machine->transactions) {
        return IEMU_E_ARGUMENT; /* would be busy for ever */
    } else if (parts_of(transfer, 0) > machine->transactions_free) {
        none.status = IEMU_BUSY;
    } else {
        return submit(port, transfer, data, 0, &none, NULL);
    }
    port->last = none;
    return none.status;
}
