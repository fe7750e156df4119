/* What the files of this folder share. */
#ifndef IEMU_VTD_H
#define IEMU_VTD_H

#include "../fields.h"
#include "../introspection.h"
#include "../queue.h"
#include "../unit.h"
#include "../vendor.h"
#include "../walk.h"

/* Offsets and bit positions, from registers.def. */
enum vtd_register {
#define REGISTER(name, base, offset, width, count, stride, description) VTD_##name,
#define FIELD(reg, name, high, low, access, reset, needs)
#include "registers.def"
#undef REGISTER
#undef FIELD
    VTD_REGISTERS
};

enum vtd_offset {
#define REGISTER(name, base, offset, width, count, stride, description) VTD_##name##_AT = (offset),
#define FIELD(reg, name, high, low, access, reset, needs)
#include "registers.def"
#undef REGISTER
#undef FIELD
};

enum vtd_field {
#define REGISTER(name, base, offset, width, count, stride, description)
#define FIELD(reg, name, high, low, access, reset, needs)                                      \
    VTD_##reg##_##name##_LOW = (low), VTD_##reg##_##name##_BITS = (high) - (low) + 1,
#include "registers.def"
#undef REGISTER
#undef FIELD
};

#define VTD_MASK(reg, field)       IEMU_FIELD_MASK(VTD_##reg##_##field)
#define VTD_GET(reg, field, value) IEMU_FIELD_GET(VTD_##reg##_##field, value)
#define VTD_PUT(reg, field, value) IEMU_FIELD_PUT(VTD_##reg##_##field, value)

enum vtd_diagnostic {
#define FAULT(slug, code, name, qualified, tr, td, condition, section) VTD_DIAG_##slug,
#include "faults.def"
#undef FAULT
    VTD_DIAGNOSTICS
};

/* What a translation request gets (8.2 of the fact sheet). */
enum vtd_answer {
    VTD_ANSWER_UR,
    VTD_ANSWER_CA,
    VTD_ANSWER_ZERO,      /* success with R=W=0, not recorded */
    VTD_ANSWER_EFFECTIVE, /* success with the effective permissions, not recorded */
};

struct vtd_fault_row {
    uint8_t code;
    bool qualified;
    uint8_t translation_request; /* enum vtd_answer */
    uint8_t translated;
};
extern const struct vtd_fault_row vtd_fault_rows[VTD_DIAGNOSTICS];

/* Invalidation queue error information (7.6). */
enum vtd_iqei {
    VTD_IQEI_TAIL = 1,
    VTD_IQEI_FETCH = 2,
    VTD_IQEI_TYPE = 3,
    VTD_IQEI_RESERVED = 4,
    VTD_IQEI_WIDTH = 5,
    VTD_IQEI_TAIL_ALIGNMENT = 6,
    VTD_IQEI_MODE = 7,
};

/* Register commands that were accepted and are not complete. */
enum vtd_command {
    VTD_COMMAND_CONTEXT = 1, /* CCMD */
    VTD_COMMAND_IOTLB = 2,   /* IOTLB register */
};

struct iemu_vtd {
    struct iemu_unit unit;
    uint64_t cap;
    uint64_t ecap;

    /* Latched from registers. */
    uint64_t root;      /* RTADDR at the last SRTP */
    uint64_t interrupt_table; /* IRTA at the last SIRTP */
    uint64_t protected_low[2];  /* first and last byte; first > last: none */
    uint64_t protected_high[2];
    bool protect;

    /* False: every request takes the long way (TES=0, unusual mode, protection, tracing). */
    bool quick;

    /* Derived from the capabilities. */
    uint64_t address_reserved; /* bits 63:HAW of an entry */
    uint64_t leaf_reserved[4]; /* by level: bits that a leaf of that level must have clear */
    uint64_t recorded_address; /* fault information bits that exist (2.10) */
    uint32_t domain_mask;
    uint8_t guest_width;   /* MGAW + 1 */
    uint8_t largest_levels; /* of SAGAW */
    uint8_t major;
    uint8_t minor;
    uint8_t protected_shift;
    bool compress_faults;
    uint64_t invalidation_timeout; /* ns; 0: none */

    uint32_t fault_index; /* next record to write (8.1) */

    struct iemu_queue queue;     /* invalidation queue */
    struct iemu_queue registers; /* CCMD and IOTLB commands, the same states beside it */
    uint32_t commands;           /* enum vtd_command bits that wait in `registers` */
    bool queue_closing;          /* QIE was cleared with work left */
    bool wait_aborted;           /* the wait at the head never completes (ITE) */
    bool command_held;           /* GCMD waits for a drain, and is `held_command` */
    uint32_t held_command;

};

static inline struct iemu_vtd *vtd_of(struct iemu_unit *unit)
{
    return (struct iemu_vtd *)unit;
}

/* Offset of a register in this unit's window; UINT32_MAX if there is no such register. */
uint32_t vtd_register_offset(const struct iemu_vtd *v, size_t reg);
/* CAP.NFR + 1. */
static inline uint32_t vtd_fault_records(const struct iemu_vtd *v)
{
    return (uint32_t)VTD_GET(CAP, NFR, v->cap) + 1;
}

static inline bool vtd_status(const struct iemu_vtd *v, uint64_t mask)
{
    return iemu_reg32(&v->unit.regs, VTD_GSTS_AT) & mask;
}

/* translate.c */
void vtd_translate(struct iemu_unit *unit, const struct iemu_request *request,
                   struct iemu_result *result);
void vtd_translate_watched(struct iemu_unit *unit, const struct iemu_request *request,
                           struct iemu_result *result);
void vtd_look_again(struct iemu_unit *unit, const struct iemu_request *request,
                    struct iemu_result *result, struct iemu_trail *trail);
/* Whether ordinary requests may take the short way; after any change of mode. */
void vtd_update_quick(struct iemu_vtd *v);
void vtd_describe(struct iemu_unit *unit, uint32_t cache, const struct iemu_tag *tag,
                  const struct iemu_line *line, struct iemu_cache_entry *entry);

/* invalidation.c */
extern const uint16_t vtd_ignored_functions[4];
/* The trigger byte of CCMD or of the IOTLB register was written. */
void vtd_context_command(struct iemu_vtd *v);
void vtd_iotlb_command(struct iemu_vtd *v);
void vtd_drop_everything(struct iemu_vtd *v);
/* Goes on with register commands and the queue as far as timing allows. */
void vtd_invalidation_run(struct iemu_vtd *v);
void vtd_invalidation_init(struct iemu_vtd *v);
void vtd_invalidation_reset(struct iemu_vtd *v);
bool vtd_step(struct iemu_unit *unit);
/* Completions of device-TLB invalidations (6.4, 7.6). */
bool vtd_takes_answers(const struct iemu_unit *unit);
void vtd_invalidation_timed_out(struct iemu_unit *unit, const struct iemu_itag *tag);
/* FSTS was written: clearing IQE or ITE restarts the fetch at the head (7.6). */
void vtd_queue_restart(struct iemu_vtd *v);
void vtd_unexpected_answer(struct iemu_unit *unit, uint16_t requester);
uint32_t vtd_invalidation_state(struct iemu_unit *unit);

/* fault.c */
/* Records a fault as 8.1 says, unless `suppress` (FPD). Returns whether a record was written. */
bool vtd_record_fault(struct iemu_vtd *v, const struct iemu_request *request, uint32_t diagnostic,
                      uint64_t information, bool suppress);
/* A record's F bit or FSTS was written. */
void vtd_faults_acknowledged(struct iemu_vtd *v);
/* Sets IQE, ICE or ITE (an FSTS bit) and raises the fault event if it was idle. */
void vtd_queue_error(struct iemu_vtd *v, uint32_t status_bit);
/* The pending rules of 2.9 for one event's registers. */
void vtd_event_raise(struct iemu_vtd *v, uint32_t control);
void vtd_event_control_written(struct iemu_vtd *v, uint32_t control);
void vtd_event_withdraw(struct iemu_vtd *v, uint32_t control);

/* interrupt.c */
void vtd_remap_interrupt(struct iemu_unit *unit, const struct iemu_request *request,
                         uint64_t *address, uint32_t *data, struct iemu_result *result);
/* Lands the interrupts on their way to the interrupt controller (7.7). False: not all yet. */
bool vtd_drain_interrupts(struct iemu_vtd *v);

#endif
