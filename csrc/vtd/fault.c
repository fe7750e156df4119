/* Primary fault logging (fact sheet 8.1) and the events of 2.9. */
#include "vtd.h"

const struct vtd_fault_row vtd_fault_rows[VTD_DIAGNOSTICS] = {
#define FAULT(slug, code, name, qualified, tr, td, condition, section)                         \
    [VTD_DIAG_##slug] = {code, qualified, VTD_ANSWER_##tr, VTD_ANSWER_##td},
#include "faults.def"
#undef FAULT
};

/* ---- events: control, data, address and upper address registers in a row ------------------- */

static void try_send(struct iemu_vtd *v, uint32_t control)
{
    struct iemu_regfile *regs = &v->unit.regs;
    uint32_t value = iemu_reg32(regs, control);
    uint64_t address = iemu_reg32(regs, control + 8) |
                       (uint64_t)iemu_reg32(regs, control + 12) << 32;

    if (!(value & VTD_MASK(FECTL, IP)) || value & VTD_MASK(FECTL, IM))
        return;
    /* IP stays readable while the message is held, here by a full outbox. */
    if (iemu_unit_message(&v->unit, address, iemu_reg32(regs, control + 4)))
        iemu_reg32_set(regs, control, value & ~(uint32_t)VTD_MASK(FECTL, IP));
}

void vtd_event_raise(struct iemu_vtd *v, uint32_t control)
{
    struct iemu_regfile *regs = &v->unit.regs;

    iemu_reg32_set(regs, control,
                   iemu_reg32(regs, control) | (uint32_t)VTD_MASK(FECTL, IP));
    try_send(v, control);
}

void vtd_event_control_written(struct iemu_vtd *v, uint32_t control)
{
    try_send(v, control);
}

void vtd_event_withdraw(struct iemu_vtd *v, uint32_t control)
{
    struct iemu_regfile *regs = &v->unit.regs;

    iemu_reg32_set(regs, control,
                   iemu_reg32(regs, control) & ~(uint32_t)VTD_MASK(FECTL, IP));
}

/* ---- fault status --------------------------------------------------------------------------- */

#define FSTS_CAUSES                                                                            \
    ((uint32_t)(VTD_MASK(FSTS, PFO) | VTD_MASK(FSTS, PPF) | VTD_MASK(FSTS, IQE) |              \
                VTD_MASK(FSTS, ICE) | VTD_MASK(FSTS, ITE)))

/* Sets a status bit; an event follows only if nothing was pending before (2.9). */
static void set_cause(struct iemu_vtd *v, uint32_t bits)
{
    struct iemu_regfile *regs = &v->unit.regs;
    uint32_t before = iemu_reg32(regs, VTD_FSTS_AT);

    iemu_reg32_set(regs, VTD_FSTS_AT, before | bits);
    if (!(before & FSTS_CAUSES))
        vtd_event_raise(v, VTD_FECTL_AT);
}

void vtd_queue_error(struct iemu_vtd *v, uint32_t status_bit)
{
    set_cause(v, status_bit);
}

static uint32_t record_offset(const struct iemu_vtd *v, uint32_t index)
{
    return vtd_register_offset(v, VTD_FRCD) + index * 16;
}

static bool record_in_use(const struct iemu_vtd *v, uint32_t index)
{
    return iemu_reg32(&v->unit.regs, record_offset(v, index) + 12) & VTD_MASK(FRCD, F) >> 32;
}

static bool has_record_of(const struct iemu_vtd *v, uint16_t requester)
{
    for (uint32_t i = 0; i < vtd_fault_records(v); i++) {
        if (record_in_use(v, i) &&
            (iemu_reg32(&v->unit.regs, record_offset(v, i) + 8) & 0xffff) == requester)
            return true;
    }
    return false;
}

static void write_record(struct iemu_vtd *v, const struct iemu_request *request, uint8_t code,
                         uint64_t information)
{
    struct iemu_regfile *regs = &v->unit.regs;
    uint32_t at = record_offset(v, v->fault_index);
    uint64_t high = VTD_PUT(FRCD, SID, request->requester) | VTD_PUT(FRCD, FR, code);

    /* (T1,T2): 00 write, 10 read, 11 AtomicOp. */
    if (request->access & IEMU_READ)
        high |= VTD_PUT(FRCD, T1, 1);
    if (request->access == IEMU_ATOMIC)
        high |= VTD_PUT(FRCD, T2, 1);
    if (VTD_GET(ECAP, DT, v->ecap))
        high |= VTD_PUT(FRCD, AT, request->at);
    if (VTD_GET(ECAP, PASID, v->ecap) && request->flags & IEMU_HAS_PASID)
        high |= VTD_PUT(FRCD, PP, 1) | VTD_PUT(FRCD, PV, request->pasid) |
                VTD_PUT(FRCD, PRIV, !!(request->flags & IEMU_PRIVILEGED)) |
                VTD_PUT(FRCD, EXE, !!(request->flags & IEMU_EXECUTE));
    iemu_reg64_set(regs, at, information);
    iemu_reg64_set(regs, at + 8, high | VTD_MASK(FRCD, F));
}

bool vtd_record_fault(struct iemu_vtd *v, const struct iemu_request *request, uint32_t diagnostic,
                      uint64_t information, bool suppress)
{
    struct iemu_regfile *regs = &v->unit.regs;
    const struct vtd_fault_row *row = &vtd_fault_rows[diagnostic];
    uint32_t index = v->fault_index, status;

    if (!row->code || (row->qualified && suppress))
        return false;
    if (iemu_tracing(v->unit.machine))
        iemu_trace_put(v->unit.machine,
                       (struct iemu_trace_event){.kind = IEMU_TRACE_FAULT,
                                                 .address = request->address,
                                                 .a = diagnostic,
                                                 .requester = request->requester,
                                                 .code = row->code,
                                                 .unit = (uint16_t)v->unit.number});
    if (iemu_reg32(regs, VTD_FSTS_AT) & VTD_MASK(FSTS, PFO)) {
        v->unit.statistics.faults_lost++;
        return false;
    }
    if (v->compress_faults && has_record_of(v, request->requester)) {
        v->unit.statistics.faults_lost++;
        return false;
    }
    if (record_in_use(v, index)) {
        /* An overflow alone is no event (2.9); PPF is set here anyway. */
        iemu_reg32_set(regs, VTD_FSTS_AT,
                       iemu_reg32(regs, VTD_FSTS_AT) | (uint32_t)VTD_MASK(FSTS, PFO));
        v->unit.statistics.faults_lost++;
        return false;
    }
    write_record(v, request, row->code, information);
    v->unit.statistics.faults_recorded++;
    v->fault_index = (index + 1) % vtd_fault_records(v);
    status = iemu_reg32(regs, VTD_FSTS_AT);
    if (!(status & VTD_MASK(FSTS, PPF))) {
        status = (status & ~(uint32_t)VTD_MASK(FSTS, FRI)) | (uint32_t)VTD_PUT(FSTS, FRI, index);
        iemu_reg32_set(regs, VTD_FSTS_AT, status);
        set_cause(v, VTD_MASK(FSTS, PPF));
    }
    return true;
}

void vtd_faults_acknowledged(struct iemu_vtd *v)
{
    struct iemu_regfile *regs = &v->unit.regs;
    uint32_t status = iemu_reg32(regs, VTD_FSTS_AT);
    bool pending = false;

    for (uint32_t i = 0; i < vtd_fault_records(v) && !pending; i++)
        pending = record_in_use(v, i);
    if (!pending)
        status &= ~(uint32_t)VTD_MASK(FSTS, PPF);
    iemu_reg32_set(regs, VTD_FSTS_AT, status);
    if (!(status & FSTS_CAUSES))
        vtd_event_withdraw(v, VTD_FECTL_AT);
}
