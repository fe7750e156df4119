/*
 * Requests in flight: what dma.c sends and this brings to memory. A request is a transaction in
 * two queues of its port:
 *   in the fabric  sent, untranslated; meets the tables in force when it arrives
 *   translated     past the IOMMU, not yet in memory; what drains are about
 * Both are first in, first out: posted writes stay in order and reads push them.
 */
#ifndef IEMU_IN_FLIGHT_H
#define IEMU_IN_FLIGHT_H

#include <string.h>

#include "device_tlb.h"
#include "unit.h"

#define IEMU_MAX_RULES 4096u /* of a port */

enum iemu_transaction_state {
    IEMU_TRANSACTION_FREE = 0,
    IEMU_TRANSACTION_IN_FABRIC,
    IEMU_TRANSACTION_TRANSLATED,
    IEMU_TRANSACTION_ANSWERING, /* BAR read messages are out */
    IEMU_TRANSACTION_LANDED,
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
    /* Of the head: what parts that passed inside the call came to. */
    struct iemu_completion before;
    uint32_t generation; /* tells tokens of an earlier use apart */
    uint32_t open;       /* of the head: parts that have not landed */
    uint32_t offset;     /* of this part's data in the transfer */
    uint64_t answers;    /* pieces of a BAR read that are not answered yet, one bit each */
    uint64_t landed;     /* ns */
    uint64_t message;    /* an interrupt's address after remapping */
    enum iemu_transaction_state state;
    uint8_t status; /* enum iemu_status, once landed */
    uint8_t atomic;
    bool posted;
    bool due; /* its time has come, but something is before it */
    uint8_t data[IEMU_PAGE];
};

struct iemu_transaction_queue {
    struct iemu_transaction *first;
    struct iemu_transaction *last;
    uint32_t count;
};

struct iemu_port {
    struct iemu_machine *machine;
    struct iemu_port *next;
    struct iemu_unit *unit;
    uint64_t routes_seen;
    struct iemu_transaction_queue fabric;
    struct iemu_transaction_queue translated;
    uint64_t fabric_latency;
    uint64_t memory_latency;
    uint64_t last_arrival; /* of what is queued: keeps order when a latency is lowered */
    uint64_t last_landing;
    bool detours; /* transfers may do more than pass: latencies, a device-TLB, rules */
    struct iemu_completion last;
    struct iemu_device_tlb *tlb; /* NULL: the function has none */
    struct iemu_port_rule *rule; /* what never reaches the IOMMU; the first that matches counts */
    uint32_t rule_count;
    uint32_t number; /* in the order of creation */
    uint32_t open; /* transactions that are not free */
    uint16_t segment;
    uint16_t requester;
    bool removed;
    bool destroyed;
};

/* A free transaction, now the port's; there must be one. */
struct iemu_transaction *iemu_transaction_take(struct iemu_port *port);
/* Frees every part of a transfer. */
void iemu_transaction_release(struct iemu_transaction *head);
uint32_t iemu_transaction_token(const struct iemu_transaction *t, uint32_t piece);
/* Sends it into the fabric; it reaches the IOMMU at `arrival`. */
void iemu_transaction_send(struct iemu_transaction *t, uint64_t arrival);
/* The same for one that the IOMMU has translated already: only its delivery had to wait. */
void iemu_transaction_send_translated(struct iemu_transaction *t,
                                      const struct iemu_result *result);
/* Lands what is past the IOMMU. False: something waits for room in the outbox. */
bool iemu_port_settle(struct iemu_port *port);
void iemu_port_free(struct iemu_port *port);

/* port_rules.c: whether a rule decides about a request; if so, the result. */
bool iemu_port_decide(const struct iemu_port *port, const struct iemu_request *request,
                      struct iemu_result *result);
void iemu_pass_untranslated(const struct iemu_request *request, struct iemu_result *result);
void iemu_do_atomic(uint8_t *host, uint8_t *data, uint32_t length, uint8_t kind);

/* The unit that the port's requests meet; looked up again when routes have changed. */
static inline struct iemu_unit *iemu_port_unit(struct iemu_port *port)
{
    if (iemu_unlikely(port->routes_seen != port->machine->routes_changed)) {
        port->unit = iemu_machine_route(port->machine, port->segment, port->requester);
        port->routes_seen = port->machine->routes_changed;
    }
    return port->unit;
}

/* What becomes of a request at its IOMMU, if there is one. */
static inline void iemu_unit_translate(struct iemu_unit *unit, const struct iemu_request *request,
                                       struct iemu_result *result)
{
    if (iemu_likely(unit != NULL))
        unit->translate(unit, request, result);
    else
        iemu_pass_untranslated(request, result);
    /* Its answer is the translation, not what is there. */
    if (iemu_unlikely(request->at == IEMU_TRANSLATION_REQUEST) && result->outcome == IEMU_MEMORY)
        result->outcome = IEMU_TRANSLATION;
}

/* The same, after the rules of the fabric. */
static inline void iemu_fabric_translate(const struct iemu_port *port, struct iemu_unit *unit,
                                         const struct iemu_request *request,
                                         struct iemu_result *result)
{
    if (!port->rule_count || !iemu_port_decide(port, request, result))
        iemu_unit_translate(unit, request, result);
}

/* Whether requests of the port meet its device-TLB. */
static inline bool iemu_port_ats(const struct iemu_port *port)
{
    return port->tlb && port->tlb->enabled;
}

/* Whether transfers pass both stages inside the call, as long as nothing is in flight. */
static inline bool iemu_port_is_fast(const struct iemu_port *port)
{
    return !(port->fabric_latency | port->memory_latency);
}

/* After latencies, the device-TLB or the rules have changed. */
static inline void iemu_port_choose_way(struct iemu_port *port)
{
    port->detours = !iemu_port_is_fast(port) || iemu_port_ats(port) || port->rule_count;
}

/* A request of a transfer: by way of the device-TLB, if that is on. */
static inline void iemu_port_translate(struct iemu_port *port, struct iemu_unit *unit,
                                       const struct iemu_request *request,
                                       struct iemu_result *result)
{
    if (iemu_port_ats(port))
        iemu_device_tlb_translate(port, unit, request, result);
    else
        iemu_fabric_translate(port, unit, request, result);
}

/* The data of a translation request that was answered. */
static inline void iemu_put_translation(uint8_t *data, uint32_t length,
                                        const struct iemu_result *result)
{
    uint64_t entry = iemu_translation_entry(result);

    memset(data, 0, length);
    memcpy(data, &entry, length < sizeof(entry) ? length : sizeof(entry));
}

static inline uint8_t iemu_status_of(const struct iemu_result *result)
{
    switch (result->outcome) {
    case IEMU_UNSUPPORTED:
        return IEMU_UR;
    case IEMU_ABORTED:
        return IEMU_CA;
    case IEMU_NO_TRANSLATION:
        return IEMU_NOT_TRANSLATED;
    default:
        return IEMU_DONE;
    }
}

/* RAM answers at once; NULL if the translated access goes anywhere else. */
static inline uint8_t *iemu_ram_target(struct iemu_machine *machine,
                                       const struct iemu_request *request,
                                       const struct iemu_result *result)
{
    if (iemu_unlikely(result->outcome != IEMU_MEMORY || !request->length))
        return NULL;
    return iemu_memory_ram(&machine->memory, result->address, request->length);
}

static inline void iemu_move(uint8_t *host, uint8_t *data, const struct iemu_request *request,
                             uint8_t atomic)
{
    if (request->access == IEMU_READ)
        memcpy(data, host, request->length);
    else if (request->access == IEMU_WRITE)
        memcpy(host, data, request->length);
    else
        iemu_do_atomic(host, data, request->length, atomic);
}

#endif
