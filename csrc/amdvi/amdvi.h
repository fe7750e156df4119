/* What the files of this folder share. Section numbers are those of the AMD-Vi fact sheet. */
#ifndef IEMU_AMDVI_H
#define IEMU_AMDVI_H

#include "../fields.h"
#include "../introspection.h"
#include "../queue.h"
#include "../unit.h"
#include "../vendor.h"
#include "../walk.h"

/* Indices, offsets and bit positions, from registers.def. */
enum amdvi_register {
#define REGISTER(name, base, offset, width, count, stride, description) AMDVI_##name,
#define FIELD(reg, name, high, low, access, reset, needs)
#include "registers.def"
#undef REGISTER
#undef FIELD
    AMDVI_REGISTERS
};

enum amdvi_offset {
#define REGISTER(name, base, offset, width, count, stride, description)                            \
    AMDVI_##name##_AT = (offset),
#define FIELD(reg, name, high, low, access, reset, needs)
#include "registers.def"
#undef REGISTER
#undef FIELD
};

enum amdvi_field {
#define REGISTER(name, base, offset, width, count, stride, description)
#define FIELD(reg, name, high, low, access, reset, needs)                                          \
    AMDVI_##reg##_##name##_LOW = (low), AMDVI_##reg##_##name##_BITS = (high) - (low) + 1,
#include "registers.def"
#undef REGISTER
#undef FIELD
};

#define AMDVI_MASK(reg, field)       IEMU_FIELD_MASK(AMDVI_##reg##_##field)
#define AMDVI_GET(reg, field, value) IEMU_FIELD_GET(AMDVI_##reg##_##field, value)

enum amdvi_diagnostic {
#define FAULT(slug, code, name, qualified, flags, condition, section) AMDVI_DIAG_##slug,
#include "faults.def"
#undef FAULT
    AMDVI_DIAGNOSTICS
};

/* Bits 59:48 of an event (10.1). */
enum amdvi_flag {
    AMDVI_FLAG_GN = 0x001,
    AMDVI_FLAG_NX = 0x002,
    AMDVI_FLAG_US = 0x004,
    AMDVI_FLAG_I = 0x008,
    AMDVI_FLAG_PR = 0x010,
    AMDVI_FLAG_RW = 0x020,
    AMDVI_FLAG_PE = 0x040,
    AMDVI_FLAG_RZ = 0x080,
    AMDVI_FLAG_TR = 0x100,
    AMDVI_FLAG_MASTER_ABORT = 0x200,
};

/* Event codes with a layout of their own. */
enum amdvi_event {
    AMDVI_ILLEGAL_DEV_TABLE_ENTRY = 1,
    AMDVI_IO_PAGE_FAULT = 2,
    AMDVI_DEV_TAB_HARDWARE_ERROR = 3,
    AMDVI_PAGE_TAB_HARDWARE_ERROR = 4,
};

struct amdvi_fault_row {
    uint8_t code;
    bool qualified;
    uint16_t flags; /* enum amdvi_flag */
};
extern const struct amdvi_fault_row amdvi_fault_rows[AMDVI_DIAGNOSTICS];

struct iemu_amdvi {
    struct iemu_unit unit;
    uint64_t efr;
    bool np_cache;
    bool iotlb_sup;
    uint8_t levels; /* deepest page table (EFR.HATS); 0: none */

    /* False: every request takes the long way (unit off, exclusion range, lookup by domain). */
    bool quick;

    struct iemu_queue queue; /* command buffer */
    bool command_error;      /* until CmdBufEn is cleared (3.4) */
    bool message_held;       /* an MSI waits for room in the outbox */

};

static inline struct iemu_amdvi *amdvi_of(struct iemu_unit *unit)
{
    return (struct iemu_amdvi *)unit;
}

static inline bool amdvi_control(const struct iemu_amdvi *a, uint64_t mask)
{
    return iemu_reg64(&a->unit.regs, AMDVI_Control_AT) & mask;
}

static inline bool amdvi_status(const struct iemu_amdvi *a, uint64_t mask)
{
    return iemu_reg64(&a->unit.regs, AMDVI_Status_AT) & mask;
}

/* A device table entry; accessors count bits as the fact sheet's 4.2 does. */
struct amdvi_dte {
    uint64_t word[4];
};

static inline uint64_t amdvi_dte(const struct amdvi_dte *dte, unsigned high, unsigned low)
{
    return dte->word[low / 64] >> low % 64 & iemu_low_mask(high - low + 1);
}

#define DTE_V(dte)           amdvi_dte(dte, 0, 0)
#define DTE_TV(dte)          amdvi_dte(dte, 1, 1)
#define DTE_MODE(dte)        ((unsigned)amdvi_dte(dte, 11, 9))
#define DTE_ROOT(dte)        (amdvi_dte(dte, 51, 12) << 12)
#define DTE_PERMISSIONS(dte) ((unsigned)amdvi_dte(dte, 62, 61)) /* IR, IW as enum iemu_access */
#define DTE_DOMAIN(dte)      ((uint32_t)amdvi_dte(dte, 79, 64))
#define DTE_I(dte)           amdvi_dte(dte, 96, 96)
#define DTE_SE(dte)          amdvi_dte(dte, 97, 97)
#define DTE_SA(dte)          amdvi_dte(dte, 98, 98)
#define DTE_IOCTL(dte)       amdvi_dte(dte, 100, 99)
#define DTE_EX(dte)          amdvi_dte(dte, 103, 103)
#define DTE_SYSMGT(dte)      amdvi_dte(dte, 105, 104)
#define DTE_IV(dte)          amdvi_dte(dte, 128, 128)
#define DTE_INTTABLEN(dte)   ((unsigned)amdvi_dte(dte, 132, 129))
#define DTE_IG(dte)          amdvi_dte(dte, 133, 133)
#define DTE_INTTABROOT(dte)  (amdvi_dte(dte, 179, 134) << 6)
#define DTE_INITPASS(dte)    amdvi_dte(dte, 184, 184)
#define DTE_EINTPASS(dte)    amdvi_dte(dte, 185, 185)
#define DTE_NMIPASS(dte)     amdvi_dte(dte, 186, 186)
#define DTE_INTCTL(dte)      amdvi_dte(dte, 189, 188)

/* How IO_PAGE_FAULTs of a device are suppressed (10.3): DTE.SE and DTE.SA, or in a line's flags. */
enum amdvi_suppress {
    AMDVI_SUPPRESS_LATER = 1, /* SE: those after the first */
    AMDVI_SUPPRESS_ALL = 2,   /* SA */
    AMDVI_REPORTED = 4,       /* in a device-table line: the first was logged */
};

/* What is known of one request on its way, beside request and result. */
struct amdvi_passage {
    struct iemu_trail *trail; /* NULL unless watched */
    bool use_caches;          /* false: only the tables count, and nothing is filled */
    bool interrupt;           /* a message interrupt, not memory */
    uint8_t suppress;         /* enum amdvi_suppress */
    uint64_t address;         /* to report */
};

/* translate.c */
void amdvi_translate(struct iemu_unit *unit, const struct iemu_request *request,
                     struct iemu_result *result);
void amdvi_translate_watched(struct iemu_unit *unit, const struct iemu_request *request,
                             struct iemu_result *result);
void amdvi_look_again(struct iemu_unit *unit, const struct iemu_request *request,
                      struct iemu_result *result, struct iemu_trail *trail);
/* Whether ordinary requests may take the short way; after any change of mode. */
void amdvi_update_quick(struct iemu_amdvi *a);
/* Turns a result into what a faulting request gets. */
void amdvi_fault(struct iemu_result *result, uint32_t diagnostic);

/* device_table.c */
/* The entry of a requester, from the cache or from memory (4.1, 4.4). */
uint32_t amdvi_find_dte(struct iemu_amdvi *a, uint16_t requester, struct amdvi_passage *p,
                        struct amdvi_dte *dte);

/* walk.c */
bool amdvi_walk_host(struct iemu_walk *walk);

/* fault.c */
/* Reports an event of a request; whether it reached the log. */
bool amdvi_report(struct iemu_amdvi *a, const struct iemu_request *request, uint32_t diagnostic,
                  uint32_t domain, const struct amdvi_passage *p);
/* Reports an event of the command buffer; `device` is 0 unless it is about one. */
void amdvi_report_command(struct iemu_amdvi *a, uint32_t diagnostic, uint16_t device,
                          uint64_t command_address);
/* Sends the unit's MSI; holds it while the outbox is full. */
void amdvi_send_message(struct iemu_amdvi *a);
/* Sets bits of the status register. */
void amdvi_set_status(struct iemu_amdvi *a, uint64_t mask, bool on);

/* invalidation.c */
void amdvi_invalidation_init(struct iemu_amdvi *a);
void amdvi_invalidation_timed_out(struct iemu_unit *unit, const struct iemu_itag *tag);
/* Brings CmdBufRun in line with what it follows from (3.4). */
void amdvi_update_command_run(struct iemu_amdvi *a);

/* interrupt.c */
void amdvi_remap_interrupt(struct iemu_unit *unit, const struct iemu_request *request,
                           uint64_t *address, uint32_t *data, struct iemu_result *result);

/* ---- rings (3.3) ---------------------------------------------------------------------------- */

#define AMDVI_RING_ENTRY 16u

/* The length fields of both rings are at the same place. */
static inline unsigned amdvi_ring_length(const struct iemu_amdvi *a, uint32_t base)
{
    return (unsigned)AMDVI_GET(CmdBufBase, Len, iemu_reg64(&a->unit.regs, base));
}

/* Bytes; lengths below 8 are reserved, and such a ring never runs. */
static inline uint64_t amdvi_ring_bytes(const struct iemu_amdvi *a, uint32_t base)
{
    return (uint64_t)AMDVI_RING_ENTRY << amdvi_ring_length(a, base);
}

static inline uint64_t amdvi_ring_base(const struct iemu_amdvi *a, uint32_t base)
{
    return iemu_reg64(&a->unit.regs, base) & AMDVI_MASK(CmdBufBase, Base);
}

#endif
