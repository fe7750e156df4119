/*
 * The way of a DMA: split at pages, translate, reach memory. With zero latencies both stages are
 * passed inside the call; otherwise a request is a transaction in two queues of its port:
 *   in the fabric  sent, untranslated; meets the tables in force when it arrives
 *   translated     past the IOMMU, not yet in memory; what drains are about
 * Both queues are first in, first out: posted writes stay in order and reads push them.
 */
#include "dma.h"
#include "unit.h"

#include <stdlib.h>
#include <string.h>

#define MAX_TRANSFER (16u << 20)
#define MESSAGE_BYTES ((uint32_t)sizeof(((struct iemu_message *)0)->data))

enum state {
    FREE = 0,
    IN_FABRIC,
    TRANSLATED,
    ANSWERING, /* BAR read messages are out */
    LANDED,
};

struct iemu_transaction {
    struct iemu_event event;
    struct iemu_port *port;
    struct iemu_transaction *next; /* in its port's queue, or in the free list */
    struct iemu_transaction *head; /* first part of the transfer */
    struct iemu_transaction *rest; /* next part of the transfer */
    struct iemu_request request;
    struct iemu_result result;
    struct iemu_unit *unit;
    uint32_t generation; /* tells tokens of an earlier use apart */
    uint32_t open;       /* of the head: parts that have not landed */
    uint32_t offset;     /* of this part's data in the transfer */
    uint64_t answers;    /* pieces of a BAR read that are not answered yet, one bit each */
    enum state state;
    uint8_t status;      /* enum iemu_status, once landed */
    uint8_t atomic;
    bool posted;
    bool due; /* its time has come, but something is before it */
    uint64_t landed;
    uint64_t message; /* an interrupt's address after remapping */
    uint8_t data[IEMU_PAGE];
};

struct queue {
    struct iemu_transaction *first;
    struct iemu_transaction *last;
    uint32_t count;
};

struct iemu_port {
    struct iemu_machine *machine;
    struct iemu_port *next;
    struct iemu_unit *unit;
    uint64_t routes_seen;
    struct queue fabric;
    struct queue translated;
    uint64_t fabric_latency;
    uint64_t memory_latency;
    uint64_t last_arrival; /* keeps order when a latency is lowered */
    uint64_t last_landing;
    struct iemu_completion last;
    uint32_t open; /* transactions that are not free */
    uint16_t segment;
    uint16_t requester;
    bool removed;
    bool destroyed;
};

static void arrive(void *owner);
static void come_due(void *owner);

int iemu_dma_init(struct iemu_machine *machine, uint32_t transactions)
{
    machine->pool = calloc(transactions, sizeof(*machine->pool));
    if (!machine->pool)
        return IEMU_E_NO_MEMORY;
    machine->transactions = machine->transactions_free = transactions;
    for (uint32_t i = transactions; i-- > 0;) {
        machine->pool[i].next = machine->free_transactions;
        machine->free_transactions = &machine->pool[i];
    }
    return iemu_clock_reserve(&machine->clock, transactions);
}

void iemu_dma_free(struct iemu_machine *machine)
{
    while (machine->ports) {
        struct iemu_port *port = machine->ports;

        machine->ports = port->next;
        free(port);
    }
    free(machine->pool);
}

/* ---- queues and the pool ---------------------------------------------------------------- */

static void push(struct queue *queue, struct iemu_transaction *t)
{
    t->next = NULL;
    if (queue->last)
        queue->last->next = t;
    else
        queue->first = t;
    queue->last = t;
    queue->count++;
}

static struct iemu_transaction *pop(struct queue *queue)
{
    struct iemu_transaction *t = queue->first;

    queue->first = t->next;
    if (!queue->first)
        queue->last = NULL;
    queue->count--;
    return t;
}

static void free_port(struct iemu_port *port)
{
    struct iemu_port **link = &port->machine->ports;

    while (*link != port)
        link = &(*link)->next;
    *link = port->next;
    free(port);
}

static void release(struct iemu_transaction *t)
{
    struct iemu_machine *machine = t->port->machine;

    t->state = FREE;
    t->generation++;
    t->port->open--;
    t->next = machine->free_transactions;
    machine->free_transactions = t;
    machine->transactions_free++;
}

static void release_transfer(struct iemu_transaction *head)
{
    while (head) {
        struct iemu_transaction *rest = head->rest;

        release(head);
        head = rest;
    }
}

static struct iemu_transaction *take_free(struct iemu_port *port)
{
    struct iemu_machine *machine = port->machine;
    struct iemu_transaction *t = machine->free_transactions;

    machine->free_transactions = t->next;
    machine->transactions_free--;
    port->open++;
    t->port = port;
    t->rest = NULL;
    t->answers = 0;
    t->due = false;
    t->event.owner = t;
    return t;
}

static struct iemu_unit *unit_of(struct iemu_port *port)
{
    if (iemu_unlikely(port->routes_seen != port->machine->routes_changed)) {
        port->unit = iemu_machine_route(port->machine, port->segment, port->requester);
        port->routes_seen = port->machine->routes_changed;
    }
    return port->unit;
}

/* ---- stage one: translation --------------------------------------------------------------- */

/* Without an IOMMU before it, a DWORD write to the interrupt range is an interrupt. */
static void pass_untranslated(const struct iemu_request *request, struct iemu_result *result)
{
    *result = (struct iemu_result){
        .address = request->address,
        .page_shift = 12,
        .permissions = IEMU_READ | IEMU_WRITE,
        .attributes = IEMU_UNTRANSLATED_PASS,
    };
    if (request->at != IEMU_UNTRANSLATED)
        result->outcome = IEMU_UNSUPPORTED;
    else if (iemu_in_interrupt_range(request->address))
        result->outcome = request->access == IEMU_WRITE && request->length == 4 &&
                                  request->address % 4 == 0
                              ? IEMU_INTERRUPT
                              : IEMU_UNSUPPORTED;
}

static void translate(struct iemu_unit *unit, const struct iemu_request *request,
                      struct iemu_result *result)
{
    if (iemu_likely(unit != NULL))
        unit->translate(unit, request, result);
    else
        pass_untranslated(request, result);
}

/* ---- stage two: memory --------------------------------------------------------------------- */

static uint8_t status_of(const struct iemu_result *result)
{
    switch (result->outcome) {
    case IEMU_UNSUPPORTED:
        return IEMU_UR;
    case IEMU_ABORTED:
        return IEMU_CA;
    default:
        return IEMU_DONE;
    }
}

/* The one-word body is written out by width: __atomic wants a constant size. */
#define ATOMIC_BODY(type)                                                                      \
    do {                                                                                       \
        type operand, compare, old;                                                            \
        memcpy(&operand, data, sizeof(operand));                                               \
        memcpy(&compare, data, sizeof(compare));                                               \
        if (kind == IEMU_FETCH_ADD) {                                                          \
            old = __atomic_fetch_add((type *)host, operand, __ATOMIC_SEQ_CST);                 \
        } else if (kind == IEMU_SWAP) {                                                        \
            old = __atomic_exchange_n((type *)host, operand, __ATOMIC_SEQ_CST);                \
        } else {                                                                               \
            memcpy(&operand, data + sizeof(compare), sizeof(operand));                         \
            old = compare;                                                                     \
            __atomic_compare_exchange_n((type *)host, &old, operand, false, __ATOMIC_SEQ_CST,  \
                                        __ATOMIC_SEQ_CST);                                     \
        }                                                                                      \
        memcpy(data, &old, sizeof(old));                                                       \
    } while (0)

static void do_atomic(uint8_t *host, uint8_t *data, uint32_t length, uint8_t kind)
{
    if (length == 4)
        ATOMIC_BODY(uint32_t);
    else
        ATOMIC_BODY(uint64_t);
}

/* RAM answers at once; NULL if the translated access goes anywhere else. */
static uint8_t *ram_target(struct iemu_machine *machine, const struct iemu_request *request,
                           const struct iemu_result *result)
{
    if (iemu_unlikely(result->outcome != IEMU_MEMORY || !request->length))
        return NULL;
    return iemu_memory_ram(&machine->memory, result->address, request->length);
}

static void move(uint8_t *host, uint8_t *data, const struct iemu_request *request, uint8_t atomic)
{
    if (request->access == IEMU_READ)
        memcpy(data, host, request->length);
    else if (request->access == IEMU_WRITE)
        memcpy(host, data, request->length);
    else
        do_atomic(host, data, request->length, atomic);
}

static struct iemu_message message_of(const struct iemu_transaction *t, uint32_t kind)
{
    return (struct iemu_message){
        .kind = kind,
        .segment = t->port->segment,
        .requester = t->request.requester,
    };
}

static uint32_t token_of(const struct iemu_transaction *t, uint32_t part)
{
    return (uint32_t)(t - t->port->machine->pool) | part << 12 | t->generation << 18;
}

/* Puts a BAR access into the outbox, in pieces. False: no room, nothing was put. */
static bool send_to_bar(struct iemu_transaction *t, const struct iemu_range *bar)
{
    struct iemu_machine *machine = t->port->machine;
    bool read = t->request.access == IEMU_READ;
    uint32_t pieces = (t->request.length + MESSAGE_BYTES - 1) / MESSAGE_BYTES;

    if (iemu_outbox_room(machine) < pieces)
        return false;
    for (uint32_t piece = 0; piece < pieces; piece++) {
        struct iemu_message message =
            message_of(t, read ? IEMU_MESSAGE_BAR_READ : IEMU_MESSAGE_BAR_WRITE);
        uint32_t offset = piece * MESSAGE_BYTES, left = t->request.length - offset;

        message.address = t->result.address + offset;
        message.owner = bar->owner;
        message.size = left < MESSAGE_BYTES ? left : MESSAGE_BYTES;
        message.token = token_of(t, piece);
        if (!read)
            memcpy(message.data, t->data + offset, message.size);
        iemu_outbox_put(machine, &message);
    }
    t->answers = read ? UINT64_MAX >> (64 - pieces) : 0;
    return true;
}

static void interrupt_target(struct iemu_transaction *t)
{
    uint32_t data;

    t->message = t->request.address;
    if (!t->unit)
        return;
    memcpy(&data, t->data, sizeof(data));
    t->unit->ops->remap_interrupt(t->unit, &t->request, &t->message, &data, &t->result);
    memcpy(t->data, &data, sizeof(data));
}

static bool send_interrupt(struct iemu_transaction *t)
{
    struct iemu_message message = message_of(t, IEMU_MESSAGE_INTERRUPT);

    message.address = t->message;
    message.size = 4;
    memcpy(message.data, t->data, 4);
    return iemu_outbox_put(t->port->machine, &message);
}

/* Delivers a translated transaction. False: it must wait for room in the outbox. */
static bool deliver(struct iemu_transaction *t)
{
    struct iemu_machine *machine = t->port->machine;
    uint8_t *host = ram_target(machine, &t->request, &t->result);
    const struct iemu_range *range;

    t->status = status_of(&t->result);
    if (host) {
        move(host, t->data, &t->request, t->atomic);
        return true;
    }
    if (t->result.outcome == IEMU_INTERRUPT)
        return send_interrupt(t);
    if (t->result.outcome != IEMU_MEMORY || !t->request.length)
        return true;
    range = iemu_memory_find(&machine->memory, t->result.address);
    /* A BAR access stays inside one window, and atomics to BARs are not supported. */
    if (range && range->kind == IEMU_RANGE_BAR && t->request.access != IEMU_ATOMIC &&
        t->request.length <= range->size - (t->result.address - range->base))
        return send_to_bar(t, range);
    t->status = IEMU_UR; /* a hole, or an IOMMU's registers */
    return true;
}

static void complete(struct iemu_completion *completion, struct iemu_transaction *head)
{
    *completion = (struct iemu_completion){.address = head->request.address};
    for (struct iemu_transaction *t = head; t; t = t->rest) {
        if (t->landed > completion->time)
            completion->time = t->landed;
        if (completion->status)
            continue;
        if (t->status) {
            completion->status = t->status;
            completion->address = t->request.address;
            completion->fault = t->result.fault;
            completion->diagnostic = t->result.diagnostic;
            completion->recorded = t->result.recorded;
        } else {
            completion->done += t->request.length;
        }
    }
}

static void land(struct iemu_transaction *t)
{
    struct iemu_transaction *head = t->head;
    struct iemu_port *port = t->port;

    t->state = LANDED;
    t->landed = port->machine->clock.now;
    if (iemu_tracing(port->machine))
        iemu_trace_put(port->machine, (struct iemu_trace_event){.kind = IEMU_TRACE_DMA,
                                                                .address = t->request.address,
                                                                .a = t->result.address,
                                                                .b = t->request.length,
                                                                .requester = t->request.requester,
                                                                .code = t->status});
    if (--head->open)
        return;
    if (head->posted || port->removed)
        release_transfer(head);
    if (port->destroyed && !port->open)
        free_port(port);
}

/* Delivers what is due at the head of the port's translated queue. */
static void pump(struct iemu_port *port)
{
    while (port->translated.first && port->translated.first->due) {
        struct iemu_transaction *t = port->translated.first;
        bool last = port->translated.count == 1;

        if (!deliver(t))
            return;
        pop(&port->translated);
        if (t->answers)
            t->state = ANSWERING;
        else
            land(t); /* may free the port with its last transaction */
        if (last)
            return;
    }
}

static void come_due(void *owner)
{
    struct iemu_transaction *t = owner;

    t->due = true;
    pump(t->port);
}

static void arrive(void *owner)
{
    struct iemu_transaction *t = owner;
    struct iemu_port *port = t->port;
    uint64_t due;

    pop(&port->fabric); /* arrivals are in order: this is t */
    t->unit = iemu_machine_route(port->machine, port->segment, t->request.requester);
    translate(t->unit, &t->request, &t->result);
    if (t->result.outcome == IEMU_INTERRUPT)
        interrupt_target(t);
    t->state = TRANSLATED;
    push(&port->translated, t);
    due = port->machine->clock.now + port->memory_latency;
    if (due < port->last_landing)
        due = port->last_landing;
    port->last_landing = due;
    if (due == port->machine->clock.now) {
        come_due(t);
        return;
    }
    t->event.run = come_due;
    iemu_clock_schedule(&port->machine->clock, &t->event, due);
}

static bool matches(const struct iemu_transaction *t, const struct iemu_drain *drain)
{
    bool write = t->request.access & IEMU_WRITE;

    return t->unit == drain->unit && (write ? drain->writes : drain->reads) &&
           (drain->any_domain || t->result.domain == drain->domain) &&
           t->request.address <= drain->last &&
           t->request.address + t->request.length > drain->first;
}

void iemu_dma_drain(struct iemu_machine *machine, const struct iemu_drain *drain)
{
    struct iemu_port *next;

    for (struct iemu_port *port = machine->ports; port; port = next) {
        struct iemu_transaction *last = NULL;

        next = port->next;
        for (struct iemu_transaction *t = port->translated.first; t; t = t->next) {
            if (matches(t, drain))
                last = t;
        }
        if (!last)
            continue;
        for (struct iemu_transaction *t = port->translated.first;; t = t->next) {
            iemu_clock_cancel(&machine->clock, &t->event);
            t->due = true;
            if (t == last)
                break;
        }
        pump(port);
    }
}

void iemu_dma_resume(struct iemu_machine *machine)
{
    struct iemu_port *next;

    for (struct iemu_port *port = machine->ports; port; port = next) {
        next = port->next;
        pump(port);
    }
}

int iemu_dma_answer(struct iemu_machine *machine, uint32_t token, const void *data, size_t size)
{
    uint32_t index = token & 0xfff, piece = token >> 12 & 63, offset = piece * MESSAGE_BYTES;
    struct iemu_transaction *t;

    if (index >= machine->transactions)
        return IEMU_E_ARGUMENT;
    t = &machine->pool[index];
    if (t->state != ANSWERING || token != token_of(t, piece) || !(t->answers >> piece & 1))
        return IEMU_E_ARGUMENT;
    if (data) {
        uint32_t left = t->request.length - offset;

        if (size != (left < MESSAGE_BYTES ? left : MESSAGE_BYTES))
            return IEMU_E_ARGUMENT;
        memcpy(t->data + offset, data, size);
    } else {
        t->status = IEMU_UR;
    }
    t->answers &= ~(1ull << piece);
    if (!t->answers)
        land(t);
    return IEMU_OK;
}

/* ---- the port's side ------------------------------------------------------------------------ */

struct iemu_port *iemu_dma_port_create(struct iemu_machine *machine, uint16_t segment,
                                       uint16_t requester)
{
    struct iemu_port *port = calloc(1, sizeof(*port));

    if (!port)
        return NULL;
    port->machine = machine;
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
    /* Completions that nobody will take any more. */
    for (uint32_t i = 0; i < machine->transactions; i++) {
        struct iemu_transaction *t = &machine->pool[i];

        if (t->port == port && t->state == LANDED && t->head == t && !t->open)
            release_transfer(t);
    }
}

void iemu_dma_port_destroy(struct iemu_port *port)
{
    iemu_dma_port_remove(port);
    port->destroyed = true;
    if (!port->open)
        free_port(port);
}

struct iemu_machine *iemu_port_machine(struct iemu_port *port)
{
    return port->machine;
}

void iemu_dma_port_latency(struct iemu_port *port, uint64_t fabric, uint64_t memory)
{
    port->fabric_latency = fabric;
    port->memory_latency = memory;
}

void iemu_dma_port_requester(struct iemu_port *port, uint16_t requester)
{
    port->requester = requester;
    port->routes_seen = UINT64_MAX;
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

static uint32_t parts_of(const struct iemu_transfer *transfer)
{
    uint32_t offset = (uint32_t)(transfer->address % IEMU_PAGE);

    return transfer->length ? (offset + transfer->length + IEMU_PAGE - 1) / IEMU_PAGE : 1;
}

static bool valid(const struct iemu_transfer *transfer)
{
    if (transfer->length > MAX_TRANSFER || !transfer->access || transfer->access > IEMU_ATOMIC ||
        transfer->at > IEMU_AT_RESERVED || transfer->pasid >= 1u << 20 ||
        (transfer->length && transfer->length - 1 > UINT64_MAX - transfer->address))
        return false;
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

int iemu_dma_collect(struct iemu_port *port, uint32_t token, uint8_t *data,
                     struct iemu_completion *completion)
{
    struct iemu_machine *machine = port->machine;
    struct iemu_transaction *head;

    if ((token & 0xfff) >= machine->transactions)
        return IEMU_E_ARGUMENT;
    head = &machine->pool[token & 0xfff];
    if (head->state == FREE || head->port != port || head->head != head || head->posted ||
        token != token_of(head, 0))
        return IEMU_E_ARGUMENT;
    if (head->open)
        return IEMU_PENDING;
    complete(completion, head);
    completion->token = token;
    if (head->request.access != IEMU_WRITE && data) {
        for (struct iemu_transaction *t = head; t; t = t->rest)
            if (!t->status)
                memcpy(data + t->offset, t->data, t->request.length);
    }
    completion->done += head->offset; /* parts that were passed inside the call */
    release_transfer(head);
    return completion->status;
}

/*
 * Sends the transfer from byte `from` on as transactions; `translated` is the first part's
 * result if it has passed the IOMMU already and only its delivery had to wait.
 */
static int submit(struct iemu_port *port, const struct iemu_transfer *transfer, uint8_t *data,
                  uint32_t from, const struct iemu_result *translated)
{
    struct iemu_machine *machine = port->machine;
    struct iemu_transaction *head = NULL, **link = &head;
    uint64_t arrival = machine->clock.now + port->fabric_latency;
    uint32_t at = from;

    do {
        struct iemu_transaction *t = take_free(port);

        t->head = head ? head : t;
        t->request = request_of(port, transfer);
        t->request.address = transfer->address + at;
        t->request.length = part_length(t->request.address, transfer->length - at);
        t->offset = at;
        t->atomic = transfer->atomic;
        t->posted = transfer->posted;
        t->open = 0;
        t->head->open++;
        t->state = IN_FABRIC;
        if (transfer->access != IEMU_READ)
            memcpy(t->data, data + at, sent_bytes(transfer, t->request.length));
        *link = t;
        link = &t->rest;
        at += t->request.length;
    } while (at < transfer->length);

    port->last = (struct iemu_completion){
        .address = transfer->address,
        .status = IEMU_PENDING,
        .token = token_of(head, 0),
    };
    if (arrival < port->last_arrival)
        arrival = port->last_arrival;
    port->last_arrival = arrival;
    for (struct iemu_transaction *t = head, *rest; t; t = rest) {
        rest = t->rest; /* a posted transfer may be over, and t free, after this step */
        push(&port->fabric, t);
        if (t == head && translated) {
            pop(&port->fabric);
            t->result = *translated;
            t->unit = unit_of(port);
            if (t->result.outcome == IEMU_INTERRUPT)
                interrupt_target(t);
            t->state = TRANSLATED;
            push(&port->translated, t);
            come_due(t);
        } else if (arrival == machine->clock.now && port->fabric.count == 1) {
            arrive(t);
        } else {
            t->event.run = arrive;
            iemu_clock_schedule(&machine->clock, &t->event, arrival);
        }
    }
    /* With nothing to wait for it is over already. */
    if (!transfer->posted)
        iemu_dma_collect(port, port->last.token, data, &port->last);
    return port->last.status;
}

/* Both stages at once, for as long as RAM answers. */
static int pass_through_stages(struct iemu_port *port, const struct iemu_transfer *transfer,
                               uint8_t *data)
{
    struct iemu_machine *machine = port->machine;
    struct iemu_request request = request_of(port, transfer);
    struct iemu_unit *unit = unit_of(port);
    struct iemu_result result;
    uint32_t at = 0;

    request.address = transfer->address;
    do {
        uint8_t *host;

        request.length = part_length(request.address, transfer->length - at);
        translate(unit, &request, &result);
        host = ram_target(machine, &request, &result);
        if (iemu_unlikely(!host)) {
            int status = status_of(&result);

            if (!status && result.outcome != IEMU_DISCARDED && request.length)
                return submit(port, transfer, data, at, &result);
            port->last = (struct iemu_completion){
                .address = request.address,
                .time = machine->clock.now,
                .done = at,
                .status = (uint8_t)status,
                .fault = result.fault,
                .diagnostic = result.diagnostic,
                .recorded = result.recorded,
            };
            return status;
        }
        move(host, data + at, &request, transfer->atomic);
        if (iemu_tracing(machine))
            iemu_trace_put(machine, (struct iemu_trace_event){.kind = IEMU_TRACE_DMA,
                                                              .address = request.address,
                                                              .a = result.address,
                                                              .b = request.length,
                                                              .requester = request.requester});
        at += request.length;
        request.address += request.length;
    } while (at < transfer->length);
    port->last.status = IEMU_DONE;
    port->last.address = transfer->address;
    port->last.time = machine->clock.now;
    port->last.done = at;
    port->last.fault = 0;
    port->last.diagnostic = 0;
    port->last.recorded = 0;
    return IEMU_DONE;
}

int iemu_dma_transfer(struct iemu_port *port, const struct iemu_transfer *transfer, void *data)
{
    int status;

    if (iemu_unlikely(!valid(transfer)))
        return IEMU_E_ARGUMENT;
    if (iemu_unlikely(port->removed)) {
        status = IEMU_REMOVED;
    } else if (iemu_likely(!(port->fabric_latency | port->memory_latency) && !port->fabric.count &&
                           !port->translated.count)) {
        /* One BAR page, or one interrupt, may have to wait in the pool. */
        if (iemu_likely(port->machine->transactions_free >= parts_of(transfer)))
            return pass_through_stages(port, transfer, data);
        status = IEMU_BUSY;
    } else if (port->machine->transactions_free < parts_of(transfer)) {
        status = IEMU_BUSY;
    } else {
        return submit(port, transfer, data, 0, NULL);
    }
    port->last = (struct iemu_completion){
        .address = transfer->address,
        .status = (uint8_t)status,
    };
    return status;
}
