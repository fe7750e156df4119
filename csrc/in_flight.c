#include "in_flight.h"

#include <stdlib.h>

#define MESSAGE_BYTES ((uint32_t)sizeof(((struct iemu_message *)0)->data))

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

        iemu_port_free(port);
    }
    free(machine->pool);
}

/* ---- queues and the pool ---------------------------------------------------------------- */

static void push(struct iemu_transaction_queue *queue, struct iemu_transaction *t)
{
    t->next = NULL;
    if (queue->last)
        queue->last->next = t;
    else
        queue->first = t;
    queue->last = t;
    queue->count++;
}

static struct iemu_transaction *pop(struct iemu_transaction_queue *queue)
{
    struct iemu_transaction *t = queue->first;

    queue->first = t->next;
    if (!queue->first)
        queue->last = NULL;
    queue->count--;
    return t;
}

void iemu_port_free(struct iemu_port *port)
{
    struct iemu_port **link = &port->machine->ports;

    while (*link != port)
        link = &(*link)->next;
    *link = port->next;
    iemu_device_tlb_free(port);
    free(port->rule);
    free(port);
}

static void release(struct iemu_transaction *t)
{
    struct iemu_machine *machine = t->port->machine;

    t->state = IEMU_TRANSACTION_FREE;
    t->generation++;
    t->port->open--;
    t->next = machine->free_transactions;
    machine->free_transactions = t;
    machine->transactions_free++;
}

void iemu_transaction_release(struct iemu_transaction *head)
{
    while (head) {
        struct iemu_transaction *rest = head->rest;

        release(head);
        head = rest;
    }
}

struct iemu_transaction *iemu_transaction_take(struct iemu_port *port)
{
    struct iemu_machine *machine = port->machine;
    struct iemu_transaction *t = machine->free_transactions;

    machine->free_transactions = t->next;
    machine->transactions_free--;
    port->open++;
    t->port = port;
    t->head = t;
    t->rest = NULL;
    t->open = 0;
    t->offset = 0;
    t->answers = 0;
    t->due = false;
    t->event.owner = t;
    return t;
}

/* ---- stage one: translation --------------------------------------------------------------- */

/* Without an IOMMU before it, a DWORD write to the interrupt range is an interrupt. */
void iemu_pass_untranslated(const struct iemu_request *request, struct iemu_result *result)
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

/* ---- stage two: memory --------------------------------------------------------------------- */

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

void iemu_do_atomic(uint8_t *host, uint8_t *data, uint32_t length, uint8_t kind)
{
    if (length == 4)
        ATOMIC_BODY(uint32_t);
    else
        ATOMIC_BODY(uint64_t);
}

static struct iemu_message message_of(const struct iemu_transaction *t, uint32_t kind)
{
    return (struct iemu_message){
        .kind = kind,
        .segment = t->port->segment,
        .requester = t->request.requester,
    };
}

uint32_t iemu_transaction_token(const struct iemu_transaction *t, uint32_t piece)
{
    return (uint32_t)(t - t->port->machine->pool) | piece << 12 | t->generation << 18;
}

/* Puts a BAR access into the outbox, in pieces. False: no room, nothing was put. */
static bool send_to_bar(struct iemu_transaction *t, const struct iemu_range *bar)
{
    struct iemu_machine *machine = t->port->machine;
    bool read = t->request.access == IEMU_READ;
    uint32_t pieces = (t->request.length + MESSAGE_BYTES - 1) / MESSAGE_BYTES;

    if (iemu_outbox_room(machine) < pieces)
        return false;
    if (iemu_unlikely(machine->journal != NULL) && !read)
        iemu_journal_payload(machine->journal, t->data, t->request.length);
    for (uint32_t piece = 0; piece < pieces; piece++) {
        struct iemu_message message =
            message_of(t, read ? IEMU_MESSAGE_BAR_READ : IEMU_MESSAGE_BAR_WRITE);
        uint32_t offset = piece * MESSAGE_BYTES, left = t->request.length - offset;

        message.address = t->result.address + offset;
        message.owner = bar->owner;
        message.size = left < MESSAGE_BYTES ? left : MESSAGE_BYTES;
        message.token = iemu_transaction_token(t, piece);
        if (!read)
            memcpy(message.data, t->data + offset, message.size);
        iemu_outbox_put(machine, &message);
    }
    t->answers = read ? UINT64_MAX >> (64 - pieces) : 0;
    return true;
}

static void interrupt_target(struct iemu_transaction *t)
{
    struct iemu_journal *journal = t->port->machine->journal;
    uint32_t data;

    t->message = t->request.address;
    if (iemu_unlikely(journal != NULL))
        iemu_journal_payload(journal, t->data, sizeof(data));
    if (!t->unit)
        return;
    memcpy(&data, t->data, sizeof(data));
    t->unit->ops->remap_interrupt(t->unit, &t->request, &t->message, &data, &t->result);
    memcpy(t->data, &data, sizeof(data));
    if (iemu_unlikely(journal != NULL) && t->result.diagnostic) /* else the message tells */
        iemu_journal_translated(journal, &t->request, &t->result);
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
    uint8_t *host = iemu_ram_target(machine, &t->request, &t->result);
    const struct iemu_range *range;

    t->status = iemu_status_of(&t->result);
    if (host) {
        iemu_move(host, t->data, &t->request, t->atomic);
        return true;
    }
    if (t->result.outcome == IEMU_INTERRUPT)
        return send_interrupt(t);
    if (t->result.outcome == IEMU_TRANSLATION)
        iemu_put_translation(t->data, t->request.length, &t->result);
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

static void land(struct iemu_transaction *t)
{
    struct iemu_transaction *head = t->head;
    struct iemu_port *port = t->port;

    t->state = IEMU_TRANSACTION_LANDED;
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
        iemu_transaction_release(head);
    if (port->destroyed && !port->open)
        iemu_port_free(port);
}

/*
 * Delivers what is due at the head of the port's translated queue. False: `until` (may be NULL)
 * has not been reached, since something before it waits for room in the outbox. The port may be
 * gone afterwards.
 */
static bool pump(struct iemu_port *port, const struct iemu_transaction *until)
{
    while (port->translated.first && port->translated.first->due) {
        struct iemu_transaction *t = port->translated.first;
        bool last = port->translated.count == 1;

        if (!deliver(t))
            return !until;
        pop(&port->translated);
        if (t->answers)
            t->state = IEMU_TRANSACTION_ANSWERING;
        else
            land(t); /* may free the port with its last transaction */
        if (t == until)
            until = NULL;
        if (last)
            break;
    }
    return !until;
}

static void come_due(void *owner)
{
    struct iemu_transaction *t = owner;

    t->due = true;
    pump(t->port, NULL);
}

/* Translates what has arrived; returns the time that a detour by the device-TLB takes. */
static uint64_t translate(struct iemu_port *port, struct iemu_transaction *t)
{
    uint64_t asked = port->tlb ? port->tlb->translations : 0;

    iemu_port_translate(port, t->unit, &t->request, &t->result);
    /* Only what the device-TLB did not know goes to the IOMMU and back before it is sent. */
    if (!port->tlb || t->request.at != IEMU_UNTRANSLATED || port->tlb->translations == asked)
        return 0;
    return iemu_later(port->fabric_latency, port->memory_latency);
}

static void arrive(void *owner)
{
    struct iemu_transaction *t = owner;
    struct iemu_port *port = t->port;
    uint64_t due, detour;

    pop(&port->fabric); /* arrivals are in order: this is t */
    t->unit = iemu_machine_route(port->machine, port->segment, t->request.requester);
    detour = translate(port, t);
    if (t->result.attributes & IEMU_PAST_IOMMU)
        t->unit = NULL; /* no drain of the unit is about it */
    if (t->result.outcome == IEMU_INTERRUPT)
        interrupt_target(t);
    t->state = IEMU_TRANSACTION_TRANSLATED;
    push(&port->translated, t);
    due = iemu_later(port->machine->clock.now, iemu_later(port->memory_latency, detour));
    if (port->translated.count > 1 && due < port->last_landing)
        due = port->last_landing;
    port->last_landing = due;
    if (due == port->machine->clock.now) {
        come_due(t);
        return;
    }
    t->event.run = come_due;
    iemu_clock_schedule(&port->machine->clock, &t->event, due);
}

void iemu_transaction_send(struct iemu_transaction *t, uint64_t arrival)
{
    struct iemu_port *port = t->port;

    t->state = IEMU_TRANSACTION_IN_FABRIC;
    push(&port->fabric, t);
    if (arrival == port->machine->clock.now && port->fabric.count == 1) {
        arrive(t);
        return;
    }
    t->event.run = arrive;
    iemu_clock_schedule(&port->machine->clock, &t->event, arrival);
}

void iemu_transaction_send_translated(struct iemu_transaction *t,
                                      const struct iemu_result *result)
{
    t->result = *result;
    t->unit = result->attributes & IEMU_PAST_IOMMU ? NULL : iemu_port_unit(t->port);
    if (t->result.outcome == IEMU_INTERRUPT)
        interrupt_target(t);
    t->state = IEMU_TRANSACTION_TRANSLATED;
    push(&t->port->translated, t);
    come_due(t);
}

static bool matches(const struct iemu_transaction *t, const struct iemu_drain *drain)
{
    bool write = t->request.access & IEMU_WRITE;

    return t->unit == drain->unit && (write ? drain->writes : drain->reads) &&
           (drain->any_domain || t->result.domain == drain->domain) &&
           t->request.address <= drain->last &&
           t->request.address + (t->request.length ? t->request.length - 1 : 0) >= drain->first;
}

/* Lands the port's translated transactions up to `last`, whatever their time. */
static bool land_up_to(struct iemu_port *port, const struct iemu_transaction *last)
{
    for (struct iemu_transaction *t = port->translated.first;; t = t->next) {
        iemu_clock_cancel(&port->machine->clock, &t->event);
        t->due = true;
        if (t == last)
            break;
    }
    return pump(port, last);
}

bool iemu_port_settle(struct iemu_port *port)
{
    return !port->translated.last || land_up_to(port, port->translated.last);
}

bool iemu_dma_drain(struct iemu_machine *machine, const struct iemu_drain *drain)
{
    struct iemu_port *next;
    bool drained = true;

    for (struct iemu_port *port = machine->ports; port; port = next) {
        struct iemu_transaction *last = NULL;

        next = port->next;
        for (struct iemu_transaction *t = port->translated.first; t; t = t->next) {
            if (matches(t, drain))
                last = t;
        }
        if (last && !land_up_to(port, last))
            drained = false;
    }
    return drained;
}

void iemu_dma_resume(struct iemu_machine *machine)
{
    struct iemu_port *port, *next;

    for (port = machine->ports; port; port = next) {
        next = port->next;
        pump(port, NULL);
    }
    /* An answer may let a unit go on, and a drain free ports; never one that answers. */
    for (port = machine->ports; port; port = port->next) {
        if (port->tlb)
            iemu_device_tlb_resume(port->tlb);
    }
}

int iemu_dma_answer(struct iemu_machine *machine, uint32_t token, const void *data, size_t size)
{
    uint32_t index = token & 0xfff, piece = token >> 12 & 63, offset = piece * MESSAGE_BYTES;
    struct iemu_transaction *t;

    if (index >= machine->transactions)
        return IEMU_E_ARGUMENT;
    t = &machine->pool[index];
    if (t->state != IEMU_TRANSACTION_ANSWERING || token != iemu_transaction_token(t, piece) ||
        !(t->answers >> piece & 1))
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
