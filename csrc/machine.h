/* What one machine holds; how its parts reach each other. */
#ifndef IEMU_MACHINE_H
#define IEMU_MACHINE_H

#include <pthread.h>

#include "clock.h"
#include "memory.h"

#define IEMU_MAX_UNITS 64u
#define IEMU_MAX_SEGMENTS 64u

/* The x86 message-interrupt range (VT-d 5.4, AMD-Vi 7.1). */
#define IEMU_INTERRUPT_BASE 0xfee00000ull
#define IEMU_INTERRUPT_SIZE 0x100000ull

static inline bool iemu_in_interrupt_range(uint64_t address)
{
    return address - IEMU_INTERRUPT_BASE < IEMU_INTERRUPT_SIZE;
}

struct iemu_unit;
struct iemu_transaction;

struct iemu_outbox {
    struct iemu_message *ring;
    uint32_t capacity;
    uint32_t first;
    uint32_t count;
};

struct iemu_trace {
    struct iemu_trace_event *ring;
    uint64_t written;
    uint32_t capacity; /* power of two; 0: no ring */
    bool on;
};

struct iemu_route_table {
    uint16_t segment;
    uint8_t unit[65536]; /* unit's number + 1 by requester ID; 0: none */
};

struct iemu_machine {
    pthread_mutex_t lock;
    struct iemu_memory memory;
    struct iemu_clock clock;
    struct iemu_outbox outbox;
    struct iemu_trace trace;
    struct iemu_journal *journal; /* NULL: none */
    struct iemu_unit *unit[IEMU_MAX_UNITS];
    uint32_t units;
    struct iemu_route_table *route[IEMU_MAX_SEGMENTS];
    uint32_t segments;
    struct iemu_transaction *pool;
    struct iemu_transaction *free_transactions;
    uint32_t transactions;
    uint32_t transactions_free;
    struct iemu_port *ports;
    uint32_t ports_made; /* the number of the next one */
    uint64_t routes_changed; /* ports look their unit up again when this moves */
};

/* outbox.c */
static inline uint32_t iemu_outbox_room(const struct iemu_machine *machine)
{
    return machine->outbox.capacity - machine->outbox.count;
}
/* False: full, nothing was added. `message->time` is set here. */
bool iemu_outbox_put(struct iemu_machine *machine, struct iemu_message *message);

/* trace.c */
void iemu_trace_put(struct iemu_machine *machine, struct iemu_trace_event event);
static inline bool iemu_tracing(const struct iemu_machine *machine)
{
    return iemu_unlikely(machine->trace.on);
}

/* snapshot.c: how a machine is built, as the first records of a journal. */
int iemu_journal_attach(struct iemu_machine *machine, struct iemu_journal *journal);
void iemu_journal_detach(struct iemu_machine *machine);

/* machine.c */
struct iemu_unit *iemu_machine_route(struct iemu_machine *machine, uint16_t segment,
                                     uint16_t requester);
int iemu_machine_set_route(struct iemu_machine *machine, uint16_t segment, uint16_t first,
                           uint16_t last, const struct iemu_unit *unit);

/* in_flight.c */
int iemu_dma_init(struct iemu_machine *machine, uint32_t transactions);
void iemu_dma_free(struct iemu_machine *machine);
/* Goes on with what waited for room in the outbox. */
void iemu_dma_resume(struct iemu_machine *machine);
int iemu_dma_answer(struct iemu_machine *machine, uint32_t token, const void *data, size_t size);

/* Whether any transaction is in either stage. */
static inline bool iemu_dma_in_flight(const struct iemu_machine *machine)
{
    return machine->transactions_free != machine->transactions;
}

/* What a drain must land before it is over (VT-d 7.7). */
struct iemu_drain {
    struct iemu_unit *unit;
    uint64_t first; /* input addresses */
    uint64_t last;
    uint32_t domain;
    bool any_domain;
    bool reads;
    bool writes;
};
/*
 * Lands the translated transactions that match, and what the same port sent before them, since a
 * requester's transactions stay in order. False: some wait for room in the outbox; try again when
 * it has been emptied.
 */
bool iemu_dma_drain(struct iemu_machine *machine, const struct iemu_drain *drain);

#endif
