/*
 * Invalidation: by register (fact sheet 2.6, 2.7) and by queue (7). One machine with three
 * states, submitted, in progress, complete; its clock is virtual time, or a caller's step.
 */
#include "vtd.h"

/* ---- effects (7.4): never more is dropped than is asked for ------------------------------------ */

void vtd_drop_everything(struct iemu_vtd *v)
{
    for (uint32_t i = 0; i < IEMU_CACHES; i++) {
        if (i != IEMU_CACHE_INTERRUPT)
            iemu_cache_drop_all(&v->unit.cache[i]);
    }
}

enum granularity {
    INVALID = 0,
    GLOBAL = 1,
    DOMAIN = 2,
    SELECTIVE = 3, /* device, or page within domain */
};

static void invalidate_context(struct iemu_vtd *v, unsigned granularity, uint32_t domain,
                               uint16_t source, unsigned function_mask)
{
    struct iemu_cache *cache = &v->unit.cache[IEMU_CACHE_CONTEXT];
    /* FM: 0 none, 1 bit 2, 2 bits 2:1, 3 bits 2:0 of the source ID are ignored. */
    static const uint16_t ignored[4] = {0, 4, 6, 7};

    if (granularity == GLOBAL)
        iemu_cache_drop_all(cache);
    else if (granularity == DOMAIN)
        iemu_cache_drop_domain(cache, domain);
    else
        iemu_cache_drop_who(cache, source & (uint16_t)~ignored[function_mask],
                            (uint16_t)~ignored[function_mask], domain, false);
}

struct iotlb_command {
    unsigned granularity;
    uint32_t domain;
    uint64_t address; /* 63:12 */
    unsigned mask;    /* AM: log2 of the pages */
    bool hint;        /* IH: non-leaf entries are unchanged */
    bool drain_reads;
    bool drain_writes;
};

static void invalidate_iotlb(struct iemu_vtd *v, const struct iotlb_command *c)
{
    struct iemu_cache *iotlb = &v->unit.cache[IEMU_CACHE_IOTLB];
    struct iemu_cache *paging = &v->unit.cache[IEMU_CACHE_PAGING];
    uint64_t pages = iemu_low_mask(12 + c->mask);
    /* Address bits above MGAW are ignored, as are the low AM bits (7.2). */
    uint64_t first = c->address & iemu_low_mask(v->guest_width) & ~pages;
    struct iemu_drain drain = {
        .unit = &v->unit,
        .last = UINT64_MAX,
        .domain = c->domain,
        .any_domain = c->granularity == GLOBAL,
        /* Always for version 2 and later; else as asked, where supported (2.7). */
        .reads = v->major >= 2 || (c->drain_reads && VTD_GET(CAP, DRD, v->cap)),
        .writes = v->major >= 2 || (c->drain_writes && VTD_GET(CAP, DWD, v->cap)),
    };

    if (c->granularity == GLOBAL) {
        iemu_cache_drop_all(iotlb);
        iemu_cache_drop_all(paging);
    } else if (c->granularity == DOMAIN) {
        iemu_cache_drop_domain(iotlb, c->domain);
        iemu_cache_drop_domain(paging, c->domain);
    } else {
        iemu_cache_drop_range(iotlb, c->domain, first, first | pages);
        if (!c->hint)
            iemu_cache_drop_range(paging, c->domain, first, first | pages);
        drain.first = first;
        drain.last = first | pages;
    }
    if (drain.reads || drain.writes)
        iemu_dma_drain(v->unit.machine, &drain);
}

/* ---- register commands ------------------------------------------------------------------------ */

static bool registers_refused(const struct iemu_vtd *v)
{
    return v->major >= 6 || VTD_GET(RTADDR, TTM, v->root);
}

static void finish_context_command(struct iemu_vtd *v)
{
    struct iemu_regfile *regs = &v->unit.regs;
    uint64_t command = iemu_reg64(regs, VTD_CCMD_AT);
    unsigned granularity = (unsigned)VTD_GET(CCMD, CIRG, command);

    if (registers_refused(v))
        granularity = INVALID;
    if (granularity != INVALID)
        invalidate_context(v, granularity, VTD_GET(CCMD, DID, command) & v->domain_mask,
                           (uint16_t)VTD_GET(CCMD, SID, command),
                           (unsigned)VTD_GET(CCMD, FM, command));
    command &= ~(VTD_MASK(CCMD, ICC) | VTD_MASK(CCMD, CAIG));
    iemu_reg64_set(regs, VTD_CCMD_AT, command | VTD_PUT(CCMD, CAIG, granularity));
}

static uint32_t iva_offset(const struct iemu_vtd *v)
{
    return (uint32_t)VTD_GET(ECAP, IRO, v->ecap) * 16 + VTD_IVA_AT;
}

static uint32_t iotlb_offset(const struct iemu_vtd *v)
{
    return (uint32_t)VTD_GET(ECAP, IRO, v->ecap) * 16 + VTD_IOTLB_AT;
}

static void finish_iotlb_command(struct iemu_vtd *v)
{
    struct iemu_regfile *regs = &v->unit.regs;
    uint64_t command = iemu_reg64(regs, iotlb_offset(v)), address = iemu_reg64(regs, iva_offset(v));
    struct iotlb_command c = {
        .granularity = (unsigned)VTD_GET(IOTLB, IIRG, command),
        .domain = VTD_GET(IOTLB, DID, command) & v->domain_mask,
        .address = address & VTD_MASK(IVA, ADDR),
        .mask = (unsigned)VTD_GET(IVA, AM, address),
        .hint = VTD_GET(IVA, IH, address),
        .drain_reads = VTD_GET(IOTLB, DR, command),
        .drain_writes = VTD_GET(IOTLB, DW, command),
    };

    if (registers_refused(v) ||
        (c.granularity == SELECTIVE &&
         (c.mask > VTD_GET(CAP, MAMV, v->cap) || !VTD_GET(CAP, PSI, v->cap))))
        c.granularity = INVALID;
    if (c.granularity != INVALID)
        invalidate_iotlb(v, &c);
    command &= ~(VTD_MASK(IOTLB, IVT) | VTD_MASK(IOTLB, IAIG));
    iemu_reg64_set(regs, iotlb_offset(v), command | VTD_PUT(IOTLB, IAIG, c.granularity));
}

static bool step_job(struct iemu_vtd *v)
{
    enum vtd_job_kind job = v->job;

    if (job == VTD_JOB_NONE)
        return false;
    if (!v->job_started) {
        v->job_started = true;
        return true;
    }
    v->job = VTD_JOB_NONE;
    if (job == VTD_JOB_CONTEXT)
        finish_context_command(v);
    else
        finish_iotlb_command(v);
    return true;
}

static void run_job(void *owner)
{
    struct iemu_vtd *v = owner;

    while (step_job(v))
        ;
}

static void start_job(struct iemu_vtd *v, enum vtd_job_kind job)
{
    struct iemu_clock *clock = &v->unit.machine->clock;

    v->job = job;
    v->job_started = false;
    if (v->unit.timing.manual)
        return;
    if (!v->unit.timing.invalidation)
        run_job(v);
    else
        iemu_clock_schedule(clock, &v->job_event, clock->now + v->unit.timing.invalidation);
}

void vtd_context_command(struct iemu_vtd *v)
{
    /* With queued invalidation on, software must not do this; nothing happens then (2.6). */
    if (iemu_reg64(&v->unit.regs, VTD_CCMD_AT) & VTD_MASK(CCMD, ICC) &&
        !vtd_status(v, VTD_MASK(GSTS, QIES)))
        start_job(v, VTD_JOB_CONTEXT);
}

void vtd_iotlb_command(struct iemu_vtd *v)
{
    if (iemu_reg64(&v->unit.regs, iotlb_offset(v)) & VTD_MASK(IOTLB, IVT) &&
        !vtd_status(v, VTD_MASK(GSTS, QIES)))
        start_job(v, VTD_JOB_IOTLB);
}

/* ---- queue -------------------------------------------------------------------------------------- */

enum descriptor_type {
    CONTEXT_CACHE = 1,
    IOTLB = 2,
    INTERRUPT_ENTRY = 4,
    WAIT = 5,
};

/* Bits that must be 0, by type (7.2). */
#define CONTEXT_RESERVED   0xfffc00000000f1c0ull
#define IOTLB_RESERVED     0xffffffff0000f100ull
#define IOTLB_RESERVED_HI  0x0000000000000f80ull
#define INTERRUPT_RESERVED 0xffff000007fff1e0ull
#define WAIT_RESERVED      0x00000000fffff180ull
#define WAIT_RESERVED_HI   0x0000000000000003ull

static uint64_t queue_bytes(uint64_t iqa)
{
    return (uint64_t)IEMU_PAGE << VTD_GET(IQA, QS, iqa);
}

/* Whether there is a descriptor to look at (7.1). */
static bool work_waits(const struct iemu_vtd *v)
{
    const struct iemu_regfile *regs = &v->unit.regs;

    return vtd_status(v, VTD_MASK(GSTS, QIES)) &&
           !(iemu_reg32(regs, VTD_FSTS_AT) & (VTD_MASK(FSTS, IQE) | VTD_MASK(FSTS, ITE))) &&
           iemu_reg64(regs, VTD_IQH_AT) != iemu_reg64(regs, VTD_IQT_AT);
}

static void queue_error(struct iemu_vtd *v, enum vtd_iqei reason)
{
    /* The record is latched only while IQE is clear, which work_waits has checked. */
    iemu_reg64_set(&v->unit.regs, VTD_IQERCD_AT,
                   (iemu_reg64(&v->unit.regs, VTD_IQERCD_AT) & ~VTD_MASK(IQERCD, IQEI)) |
                       VTD_PUT(IQERCD, IQEI, reason));
    v->queue_state = IEMU_INVALIDATION_IDLE;
    vtd_queue_error(v, VTD_MASK(FSTS, IQE));
}

static unsigned check_descriptor(const struct iemu_vtd *v, const uint64_t d[2])
{
    unsigned type = (unsigned)((d[0] & 0xf) | (d[0] >> 9 & 7) << 4);
    unsigned granularity = d[0] >> 4 & 3;
    bool bad;

    switch (type) {
    case CONTEXT_CACHE:
        bad = d[0] & CONTEXT_RESERVED || d[1] || granularity == INVALID;
        break;
    case IOTLB:
        bad = d[0] & IOTLB_RESERVED || d[1] & IOTLB_RESERVED_HI || granularity == INVALID ||
              (granularity == SELECTIVE && (!VTD_GET(CAP, PSI, v->cap) ||
                                            (d[1] & 0x3f) > VTD_GET(CAP, MAMV, v->cap)));
        break;
    case INTERRUPT_ENTRY:
        if (!VTD_GET(ECAP, IR, v->ecap))
            return VTD_IQEI_TYPE;
        bad = d[0] & INTERRUPT_RESERVED || d[1] ||
              (granularity & 1 && (d[0] >> 27 & 0x1f) > VTD_GET(ECAP, MHMV, v->ecap));
        break;
    case WAIT:
        bad = d[0] & WAIT_RESERVED || d[1] & WAIT_RESERVED_HI;
        break;
    default: /* unknown, for 256-bit queues, or of a feature that is not there (7.1) */
        return VTD_IQEI_TYPE;
    }
    return bad ? VTD_IQEI_RESERVED : 0;
}

/* Submitted to in progress: fetches and checks the descriptor at the head. */
static void fetch(struct iemu_vtd *v)
{
    struct iemu_regfile *regs = &v->unit.regs;
    uint64_t iqa = iemu_reg64(regs, VTD_IQA_AT), tail = iemu_reg64(regs, VTD_IQT_AT);
    uint64_t mode = VTD_GET(RTADDR, TTM, v->root);
    uint64_t address = (iqa & VTD_MASK(IQA, IQA)) + iemu_reg64(regs, VTD_IQH_AT);
    unsigned reason = 0;

    if (tail >= queue_bytes(iqa))
        reason = VTD_IQEI_TAIL;
    else if (iqa & VTD_MASK(IQA, DW))
        reason = tail & 16 ? VTD_IQEI_TAIL_ALIGNMENT : VTD_IQEI_WIDTH;
    else if (mode)
        reason = VTD_IQEI_MODE;
    else if (!iemu_fetch_entry(&v->unit.machine->memory, address, v->descriptor, 2,
                               v->unit.granule_words))
        reason = VTD_IQEI_FETCH;
    else
        reason = check_descriptor(v, v->descriptor);
    if (reason)
        queue_error(v, reason);
    else
        v->queue_state = IEMU_INVALIDATION_IN_PROGRESS;
}

static void complete_wait(struct iemu_vtd *v, const uint64_t d[2])
{
    struct iemu_regfile *regs = &v->unit.regs;
    uint32_t data = (uint32_t)(d[0] >> 32);

    /* The status write comes first, so that the event pushes it (7.5). */
    if (d[0] & 0x20)
        iemu_unit_store(&v->unit.machine->memory,
                        d[1] & ~v->address_reserved & ~3ull, &data, sizeof(data));
    if (d[0] & 0x10 && !(iemu_reg32(regs, VTD_ICS_AT) & VTD_MASK(ICS, IWC))) {
        iemu_reg32_set(regs, VTD_ICS_AT, VTD_MASK(ICS, IWC));
        vtd_event_raise(v, VTD_IECTL_AT);
    }
}

static void invalidate_interrupts(struct iemu_vtd *v, uint64_t d)
{
    struct iemu_cache *cache = &v->unit.cache[IEMU_CACHE_INTERRUPT];
    uint64_t ignored = iemu_low_mask(d >> 27 & 0x1f), index = d >> 32 & 0xffff;

    if (d & 0x10)
        iemu_cache_drop_who(cache, index & ~ignored, ~ignored, 0, true);
    else
        iemu_cache_drop_all(cache);
    vtd_drain_interrupts(v);
}

/* In progress to complete: the effect, then the head moves on. */
static void finish(struct iemu_vtd *v)
{
    struct iemu_regfile *regs = &v->unit.regs;
    const uint64_t *d = v->descriptor;
    uint64_t head = iemu_reg64(regs, VTD_IQH_AT) + 16;

    switch (d[0] & 0xf) {
    case CONTEXT_CACHE:
        invalidate_context(v, d[0] >> 4 & 3, d[0] >> 16 & v->domain_mask,
                           (uint16_t)(d[0] >> 32), d[0] >> 48 & 3);
        break;
    case IOTLB:
        invalidate_iotlb(v, &(struct iotlb_command){
                                .granularity = d[0] >> 4 & 3,
                                .domain = d[0] >> 16 & v->domain_mask,
                                .address = d[1] & ~0xfffull,
                                .mask = d[1] & 0x3f,
                                .hint = d[1] >> 6 & 1,
                                .drain_writes = d[0] >> 6 & 1,
                                .drain_reads = d[0] >> 7 & 1,
                            });
        break;
    case INTERRUPT_ENTRY:
        invalidate_interrupts(v, d[0]);
        break;
    default:
        complete_wait(v, d);
        break;
    }
    v->descriptors++;
    if (iemu_tracing(v->unit.machine))
        iemu_trace_put(v->unit.machine, (struct iemu_trace_event){.kind = IEMU_TRACE_COMMAND,
                                                                  .a = d[0],
                                                                  .b = d[1],
                                                                  .unit = (uint16_t)v->unit.number});
    /* Wraps at the queue's size; shrinking the queue under its head is software's error. */
    iemu_reg64_set(regs, VTD_IQH_AT,
                   head >= queue_bytes(iemu_reg64(regs, VTD_IQA_AT)) ? 0 : head);
    v->queue_state = IEMU_INVALIDATION_IDLE;
}

static void close_if_drained(struct iemu_vtd *v)
{
    struct iemu_regfile *regs = &v->unit.regs;

    if (!v->queue_closing || v->queue_state ||
        iemu_reg64(regs, VTD_IQH_AT) != iemu_reg64(regs, VTD_IQT_AT))
        return;
    v->queue_closing = false;
    iemu_reg64_set(regs, VTD_IQH_AT, 0);
    iemu_reg32_set(regs, VTD_GSTS_AT,
                   iemu_reg32(regs, VTD_GSTS_AT) & ~(uint32_t)VTD_MASK(GSTS, QIES));
}

/* One state further; false if nothing waits. */
static bool step_queue(struct iemu_vtd *v)
{
    bool moved = true;

    if (v->queue_state == IEMU_INVALIDATION_IN_PROGRESS)
        finish(v);
    else if (work_waits(v))
        fetch(v);
    else
        moved = false;
    close_if_drained(v);
    return moved;
}

static uint64_t latency(const struct iemu_vtd *v)
{
    const struct iemu_timing *timing = &v->unit.timing;

    if (v->queue_state != IEMU_INVALIDATION_IN_PROGRESS)
        return timing->command;
    return (v->descriptor[0] & 0xf) == WAIT ? timing->wait : timing->invalidation;
}

/* Does what takes no time; schedules what does. Bounded: the head only moves to the tail. */
void vtd_queue_run(struct iemu_vtd *v)
{
    struct iemu_clock *clock = &v->unit.machine->clock;

    if (v->unit.timing.manual || v->queue_event.slot)
        return;
    while (v->queue_state == IEMU_INVALIDATION_IN_PROGRESS || work_waits(v)) {
        uint64_t wait = latency(v);

        if (wait) {
            iemu_clock_schedule(clock, &v->queue_event, clock->now + wait);
            return;
        }
        step_queue(v);
    }
    close_if_drained(v);
}

static void queue_due(void *owner)
{
    struct iemu_vtd *v = owner;

    step_queue(v);
    vtd_queue_run(v);
}

bool vtd_step(struct iemu_unit *unit)
{
    struct iemu_vtd *v = vtd_of(unit);

    iemu_clock_cancel(&unit->machine->clock, &v->job_event);
    if (step_job(v))
        return true;
    iemu_clock_cancel(&unit->machine->clock, &v->queue_event);
    if (!step_queue(v))
        return false;
    vtd_queue_run(v);
    return true;
}

uint32_t vtd_invalidation_state(struct iemu_unit *unit)
{
    const struct iemu_vtd *v = vtd_of(unit);

    if ((v->job && v->job_started) || v->queue_state == IEMU_INVALIDATION_IN_PROGRESS)
        return IEMU_INVALIDATION_IN_PROGRESS;
    return v->job || work_waits(v) ? IEMU_INVALIDATION_SUBMITTED : IEMU_INVALIDATION_IDLE;
}

void vtd_invalidation_init(struct iemu_vtd *v)
{
    v->job_event = (struct iemu_event){.run = run_job, .owner = v};
    v->queue_event = (struct iemu_event){.run = queue_due, .owner = v};
}

void vtd_invalidation_reset(struct iemu_vtd *v)
{
    iemu_clock_cancel(&v->unit.machine->clock, &v->job_event);
    iemu_clock_cancel(&v->unit.machine->clock, &v->queue_event);
    v->job = VTD_JOB_NONE;
    v->queue_state = IEMU_INVALIDATION_IDLE;
    v->queue_closing = false;
}
