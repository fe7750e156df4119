/* What the files of the public functions share: each locks, and nothing below them does. */
#ifndef IEMU_API_H
#define IEMU_API_H

#include "unit.h"

struct iemu_guard {
    pthread_mutex_t *lock;
};

static inline void iemu_unlock(struct iemu_guard *guard)
{
    pthread_mutex_unlock(guard->lock);
}

/* Holds the machine's lock to the end of the enclosing block. */
#define LOCKED(machine)                                                                        \
    struct iemu_guard guard __attribute__((cleanup(iemu_unlock), unused)) = {                  \
        &(machine)->lock};                                                                     \
    pthread_mutex_lock(guard.lock)

/* Tells a journal, if there is one, that a call of the API begins. */
#define IEMU_INPUT(machine, ...)                                                               \
    do {                                                                                       \
        if (iemu_unlikely((machine)->journal != NULL))                                         \
            iemu_journal_input((machine)->journal, (struct iemu_record){__VA_ARGS__});         \
    } while (0)

/* api_ats.c: the input of a device-TLB's creation. */
void iemu_ats_input(const struct iemu_machine *machine, const struct iemu_port *port,
                    const struct iemu_ats_config *config);

/* And what it returned, unless that is IEMU_OK. */
static inline int iemu_returned(const struct iemu_machine *machine, int code)
{
    if (iemu_unlikely(machine->journal != NULL) && code)
        iemu_journal_put(machine->journal, (struct iemu_record){
                                               .kind = IEMU_RECORD_RETURN,
                                               .value = {(uint64_t)code},
                                           });
    return code;
}

#endif
