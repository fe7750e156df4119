/*
 * One IOMMU, whatever its vendor. memory.c, dma.c, api_unit.c and Python know of a vendor only
 * what struct iemu_unit_ops says.
 */
#ifndef IEMU_UNIT_H
#define IEMU_UNIT_H

#include "cache.h"
#include "itags.h"
#include "machine.h"
#include "registers.h"
#include "watch.h"

struct iemu_statistics {
    uint64_t memory_reads; /* table entries fetched */
    uint64_t faults_recorded;
    uint64_t faults_lost; /* no room in the records or the log */
    uint64_t descriptors; /* descriptors or commands done */
};

struct iemu_unit_ops {
    uint32_t vendor;
    void (*translate)(struct iemu_unit *unit, const struct iemu_request *request,
                      struct iemu_result *result);
    /* The same beside the stale-use detector. */
    void (*translate_watched)(struct iemu_unit *unit, const struct iemu_request *request,
                              struct iemu_result *result);
    /* Size and alignment were checked: 4 or 8 bytes, naturally aligned, inside the window. */
    uint64_t (*mmio_read)(struct iemu_unit *unit, uint32_t offset, uint32_t size);
    void (*mmio_write)(struct iemu_unit *unit, uint32_t offset, uint32_t size, uint64_t value);
    /*
     * Decides whether an access that `translate` called IEMU_INTERRUPT is delivered: may change
     * address and data, or turn the result into a fault.
     */
    void (*remap_interrupt)(struct iemu_unit *unit, const struct iemu_request *request,
                            uint64_t *address, uint32_t *data, struct iemu_result *result);
    /* The detector's look: what the tables alone say. Fills and records nothing. */
    void (*look_again)(struct iemu_unit *unit, const struct iemu_request *request,
                       struct iemu_result *result, struct iemu_trail *trail);
    /* Whether an Invalidation Completion is taken at all. */
    bool (*takes_answers)(const struct iemu_unit *unit);
    /* A device-TLB did not answer in time: `tag` is free again. */
    void (*invalidation_timed_out)(struct iemu_unit *unit, const struct iemu_itag *tag);
    /* A function answered what it was not asked. */
    void (*unexpected_answer)(struct iemu_unit *unit, uint16_t requester);
    /* Moves the invalidation machine by one state. */
    bool (*step)(struct iemu_unit *unit);
    /* Something the unit waited for (room in the outbox, a new timing) may be there now. */
    void (*resume)(struct iemu_unit *unit);
    void (*reset)(struct iemu_unit *unit, uint32_t kind);
    /* Fills what the generic part of an entry's description does not know. */
    void (*describe)(struct iemu_unit *unit, uint32_t cache, const struct iemu_tag *tag,
                     const struct iemu_line *line, struct iemu_cache_entry *entry);
    uint32_t (*invalidation_state)(struct iemu_unit *unit);
    bool (*has_field)(struct iemu_unit *unit, size_t field);
    uint32_t (*register_offset)(struct iemu_unit *unit, size_t reg);
    void (*destroy)(struct iemu_unit *unit);
};

struct iemu_unit {
    /* Beside the operations, not in them: switching the detector costs the hit path nothing. */
    void (*translate)(struct iemu_unit *unit, const struct iemu_request *request,
                      struct iemu_result *result);
    const struct iemu_unit_ops *ops;
    struct iemu_machine *machine;
    struct iemu_cache cache[IEMU_CACHES];
    struct iemu_regfile regs;
    struct iemu_timing timing;
    struct iemu_statistics statistics;
    struct iemu_watch *watch; /* NULL: off */
    struct iemu_itags itags;  /* device-TLB invalidations that are not answered */
    uint64_t base;
    uint32_t window;
    uint32_t number;
    uint16_t granule_words; /* entry-fetch granule in quadwords */
    uint8_t address_width;  /* of host physical addresses */
    uint8_t iotlb_lookup;
    union iemu_any_config made_of;
};

/*
 * Sets up what both vendors share, places the register window and numbers the unit. On failure
 * nothing is left behind.
 */
int iemu_unit_init(struct iemu_unit *unit, struct iemu_machine *machine,
                   const struct iemu_unit_config *config, const struct iemu_unit_ops *ops);
/* Undoes iemu_unit_init of a unit that was not handed out. */
void iemu_unit_abandon(struct iemu_unit *unit);
void iemu_unit_free(struct iemu_unit *unit);

/* Chooses `translate` anew after the detector, the trace or the journal was switched. */
void iemu_unit_choose_translate(struct iemu_unit *unit);

/* Sends one of the unit's own messages; never remapped. False: no room in the outbox. */
bool iemu_unit_message(struct iemu_unit *unit, uint64_t address, uint32_t data);

/* Value of a line's first quadword: output page address, with these in the low 12 bits. */
enum iemu_leaf_bits {
    IEMU_LEAF_PERMISSIONS = 3, /* enum iemu_access */
    IEMU_LEAF_SNOOP = 4,
    IEMU_LEAF_NEGATIVE = 8, /* a cached fault: value[1] is its diagnostic */
    IEMU_LEAF_UNTRANSLATED_ONLY = 16, /* AMD-Vi: U of the page-table entry */
};

static inline uint64_t iemu_low_mask(unsigned bits)
{
    return bits >= 64 ? UINT64_MAX : (1ull << bits) - 1;
}

#endif
