/* The event log (10), its interrupt, and the status register (3.6). */
#include "amdvi.h"

/* The short names of the flags column. */
enum {
    PR = AMDVI_FLAG_PR,
    PE = AMDVI_FLAG_PE,
    RZ = AMDVI_FLAG_RZ,
    TR = AMDVI_FLAG_TR,
    MASTER_ABORT = AMDVI_FLAG_MASTER_ABORT,
};
#define TYPE(type) ((type) << 9)

const struct amdvi_fault_row amdvi_fault_rows[AMDVI_DIAGNOSTICS] = {
#define FAULT(slug, code, name, qualified, flags, condition, section)                              \
    [AMDVI_DIAG_##slug] = {code, qualified, flags},
#include "faults.def"
#undef FAULT
};

/* ---- interrupt and status ------------------------------------------------------------------- */

void amdvi_set_status(struct iemu_amdvi *a, uint64_t mask, bool on)
{
    uint64_t status = iemu_reg64(&a->unit.regs, AMDVI_Status_AT);

    iemu_reg64_set(&a->unit.regs, AMDVI_Status_AT, on ? status | mask : status & ~mask);
}

void amdvi_send_message(struct iemu_amdvi *a)
{
    const struct iemu_regfile *regs = &a->unit.regs;
    uint64_t address = iemu_reg32(regs, AMDVI_MsiAddrLow_AT) |
                       (uint64_t)iemu_reg32(regs, AMDVI_MsiAddrHigh_AT) << 32;

    /* Edges that come while one is held merge, as in any interrupt controller. */
    a->message_held = iemu_reg32(regs, AMDVI_MsiCapHdr_AT) & AMDVI_MASK(MsiCapHdr, Enable) &&
                      !iemu_unit_message(&a->unit, address, iemu_reg32(regs, AMDVI_MsiData_AT));
}

/* The status bit is set whatever the enable says (15: V); a set bit does not hold the MSI back. */
static void event_interrupt(struct iemu_amdvi *a, uint64_t status)
{
    amdvi_set_status(a, status, true);
    if (amdvi_control(a, AMDVI_MASK(Control, EventIntEn)))
        amdvi_send_message(a);
}

/* ---- log ------------------------------------------------------------------------------------ */

static bool append(struct iemu_amdvi *a, const uint64_t event[2])
{
    struct iemu_regfile *regs = &a->unit.regs;
    uint64_t tail = iemu_reg64(regs, AMDVI_EvtLogTail_AT);
    uint64_t next = (tail + AMDVI_RING_ENTRY) & (amdvi_ring_bytes(a, AMDVI_EvtLogBase_AT) - 1);

    if (!amdvi_status(a, AMDVI_MASK(Status, EventLogRun)) ||
        amdvi_status(a, AMDVI_MASK(Status, EventOverflow))) {
        a->unit.statistics.faults_lost++;
        return false;
    }
    if (next == iemu_reg64(regs, AMDVI_EvtLogHead_AT)) {
        a->unit.statistics.faults_lost++;
        event_interrupt(a, AMDVI_MASK(Status, EventOverflow));
        return false;
    }
    /*
     * The entry, then the tail, then the interrupt (10.3). It is a posted write: where there is
     * no RAM it is lost, and nobody learns of it.
     */
    iemu_unit_store(&a->unit.machine->memory, amdvi_ring_base(a, AMDVI_EvtLogBase_AT) + tail, event,
                    AMDVI_RING_ENTRY);
    iemu_reg64_set(regs, AMDVI_EvtLogTail_AT, next);
    a->unit.statistics.faults_recorded++;
    event_interrupt(a, AMDVI_MASK(Status, EventLogInt));
    return true;
}

static void trace(const struct iemu_amdvi *a, uint16_t requester, uint64_t address,
                  uint32_t diagnostic)
{
    if (iemu_tracing(a->unit.machine))
        iemu_trace_put(a->unit.machine,
                       (struct iemu_trace_event){.kind = IEMU_TRACE_FAULT,
                                                 .address = address,
                                                 .a = diagnostic,
                                                 .requester = requester,
                                                 .code = amdvi_fault_rows[diagnostic].code,
                                                 .unit = (uint16_t)a->unit.number});
}

/* Layouts of 10.1. */
static void compose(uint64_t event[2], const struct iemu_request *request, uint32_t diagnostic,
                    uint32_t domain, const struct amdvi_passage *p)
{
    static const uint64_t undefined_address[] = {
        [AMDVI_ILLEGAL_DEV_TABLE_ENTRY] = 3,
        [AMDVI_DEV_TAB_HARDWARE_ERROR] = 15,
        [AMDVI_PAGE_TAB_HARDWARE_ERROR] = 7,
    };
    const struct amdvi_fault_row *row = &amdvi_fault_rows[diagnostic];
    uint64_t flags = row->flags, low = request->requester;

    /* INVALID_DEVICE_REQUEST has neither I nor RW. */
    if (row->code <= AMDVI_PAGE_TAB_HARDWARE_ERROR) {
        if (p->interrupt)
            flags |= AMDVI_FLAG_I; /* RW means nothing then */
        else if (request->access & IEMU_WRITE)
            flags |= AMDVI_FLAG_RW;
        if (request->at == IEMU_TRANSLATION_REQUEST)
            flags |= AMDVI_FLAG_TR;
    }
    if (request->flags & IEMU_HAS_PASID && row->code != AMDVI_DEV_TAB_HARDWARE_ERROR) {
        flags |= AMDVI_FLAG_GN;
        low |= (uint64_t)(request->pasid >> 16) << 16 | (uint64_t)(request->pasid & 0xffff) << 32;
        if (row->code == AMDVI_IO_PAGE_FAULT)
            flags |= (request->flags & IEMU_EXECUTE ? AMDVI_FLAG_NX : 0) |
                     (request->flags & IEMU_PRIVILEGED ? 0 : AMDVI_FLAG_US);
    } else if (row->code == AMDVI_IO_PAGE_FAULT || row->code == AMDVI_PAGE_TAB_HARDWARE_ERROR) {
        low |= (uint64_t)domain << 32;
    }
    event[0] = low | flags << 48 | (uint64_t)row->code << 60;
    event[1] = p->address;
    if (row->code < IEMU_COUNT(undefined_address))
        event[1] &= ~undefined_address[row->code];
}

/* The line of a device's entry, if it is cached. No statistics. */
static struct iemu_line *cached_entry(struct iemu_amdvi *a, uint16_t requester)
{
    return iemu_cache_probe(&a->unit.cache[IEMU_CACHE_CONTEXT], 0, requester, requester);
}

bool amdvi_report(struct iemu_amdvi *a, const struct iemu_request *request, uint32_t diagnostic,
                  uint32_t domain, const struct amdvi_passage *p)
{
    const struct amdvi_fault_row *row = &amdvi_fault_rows[diagnostic];
    struct iemu_line *entry = NULL;
    uint64_t event[2];

    if (!row->code)
        return false;
    trace(a, request->requester, p->address, diagnostic);
    if (row->qualified && p->suppress & AMDVI_SUPPRESS_ALL)
        return false;
    if (row->qualified && p->suppress & AMDVI_SUPPRESS_LATER) {
        /* "Later" lasts as long as the entry stays cached (10.3). */
        entry = cached_entry(a, request->requester);
        if (entry && entry->flags & AMDVI_REPORTED)
            return false;
    }
    compose(event, request, diagnostic, domain, p);
    if (!append(a, event))
        return false;
    if (entry)
        entry->flags |= AMDVI_REPORTED;
    return true;
}

void amdvi_report_command(struct iemu_amdvi *a, uint32_t diagnostic, uint16_t device,
                          uint64_t command_address)
{
    const struct amdvi_fault_row *row = &amdvi_fault_rows[diagnostic];
    uint64_t event[2] = {device | (uint64_t)row->flags << 48 | (uint64_t)row->code << 60,
                         command_address};

    trace(a, device, command_address, diagnostic);
    append(a, event);
}
