/*
 * A port's device-TLB (VT-d 6, AMD-Vi 8, pci 3.1): a cache of translation completions in the
 * function, and how the function answers when it is asked to invalidate.
 */
#ifndef IEMU_DEVICE_TLB_H
#define IEMU_DEVICE_TLB_H

#include "cache.h"
#include "itags.h"
#include "watch.h"

struct iemu_port;
struct iemu_unit;

/* A request to invalidate that the function has not answered yet. */
struct iemu_asked {
    uint64_t first;
    uint64_t last;
    uint64_t due; /* ns at which it answers */
    uint8_t tag;
    uint8_t answer; /* enum iemu_answer */
};

struct iemu_device_tlb {
    struct iemu_cache cache;
    struct iemu_trail *trail; /* of each line, by its index; NULL: never watched */
    struct iemu_port *port;
    struct iemu_event event;             /* the oldest request is due */
    struct iemu_asked asked[IEMU_ITAGS]; /* a ring */
    uint32_t first;
    uint32_t count;
    bool enabled;
    bool held; /* the oldest waits for room in the outbox */
    struct iemu_ats_config config;
    uint64_t translations; /* translation requests sent */
    uint64_t requests;     /* requests to invalidate received */
    uint64_t answers;      /* and answered */
};

int iemu_device_tlb_create(struct iemu_port *port, const struct iemu_ats_config *config);
void iemu_device_tlb_free(struct iemu_port *port);
/* The function is gone: what it was asked stays unanswered. */
void iemu_device_tlb_remove(struct iemu_device_tlb *tlb);
void iemu_device_tlb_enable(struct iemu_device_tlb *tlb, bool on);
void iemu_device_tlb_drop(struct iemu_device_tlb *tlb, uint64_t first, uint64_t last);
/* Sends an Invalidation Completion; enum iemu_status. */
int iemu_device_tlb_complete(struct iemu_port *port, uint32_t tags, uint32_t count);
/* Answers what waited for room in the outbox. */
void iemu_device_tlb_resume(struct iemu_device_tlb *tlb);
bool iemu_device_tlb_was_used(const struct iemu_device_tlb *tlb);
/* Copies up to `count`; both return how many there are. */
size_t iemu_device_tlb_entries(const struct iemu_device_tlb *tlb, struct iemu_cache_entry *entries,
                               size_t count);
size_t iemu_device_tlb_counters(const struct iemu_device_tlb *tlb, struct iemu_counter *counters,
                                size_t count);

/* The port of a function with a device-TLB whose requests `unit` gets, or NULL. */
struct iemu_port *iemu_device_tlb_port(struct iemu_unit *unit, uint16_t requester);
/* The function receives an Invalidate Request. */
void iemu_device_tlb_ask(struct iemu_port *port, unsigned tag, uint64_t first, uint64_t last);

/*
 * A request of a port whose ATS is enabled: untranslated ones go through the device-TLB, and
 * `result` tells what came of the last request that this took.
 */
void iemu_device_tlb_translate(struct iemu_port *port, struct iemu_unit *unit,
                               const struct iemu_request *request, struct iemu_result *result);
/* A completion entry as the function reads it (VT-d 6.2). */
uint64_t iemu_translation_entry(const struct iemu_result *result);

#endif
