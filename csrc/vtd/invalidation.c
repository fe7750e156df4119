/*
 * Invalidation: by register (fact sheet 2.6, 2.7) and by queue (7). One machine with three
 * states, submitted, in progress, complete; its clock is virtual time, or a caller's step.
 */
#include "vtd.h"

/* ---- effects (7.4): never more is dropped than is asked for ---------------------------------- */

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

/* FM and SQ: 0 none, 1 bit 2, 2 bits 2:1, 3 bits 2:0 of the source ID are ignored. */
const uint16_t vtd_ignored_functions[4] = {0, 4, 6, 7};

static void invalidate_context(struct iemu_vtd *v, unsigned granularity, uint32_t domain,
                               uint16_t source, unsigned function_mask)
{
    struct iemu_cache *cache = &v->unit.cache[IEMU_CACHE_CONTEXT];

    if (granularity == GLOBAL)
        iemu_cache_drop_all(cache);
    else if (granularity == DOMAIN)
        iemu_cache_drop_domain(cache, domain);
    else
        iemu_cache_drop_keys(cache, source, vtd_ignored_functions[function_mask], &domain);
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

/* Lands what the command asks to drain; false: that is not over yet. */
static bool drain(struct iemu_vtd *v, const struct iotlb_command *c, uint64_t first, uint64_t last)
{
    struct iemu_drain drain = {
        .unit = &v->unit,
        .last = UINT64_MAX,
        .domain = c->domain,
        .any_domain = c->granularity == GLOBAL,
        /* Always for version 2 and later; else as asked, where supported (2.7). */
        .reads = v->major >= 2 || (c->drain_reads && VTD_GET(CAP, DRD, v->cap)),
        .writes = v->major >= 2 || (c->drain_writes && VTD_GET(CAP, DWD, v->cap)),
    };

    if (c->granularity == SELECTIVE) {
        drain.first = first;
        drain.last = last;
    }
    return !(drain.reads || drain.writes) || iemu_dma_drain(v->unit.machine, &drain);
}

/* False: the drain is not over yet, and nothing was dropped. */
static bool invalidate_iotlb(struct iemu_vtd *v, const struct iotlb_command *c)
{
    struct iemu_cache *iotlb = &v->unit.cache[IEMU_CACHE_IOTLB];
    struct iemu_cache *paging = &v->unit.cache[IEMU_CACHE_PAGING];
    uint64_t pages = iemu_low_mask(12 + c->mask);
    /* Address bits above MGAW are ignored, as are the low AM bits (7.2). */
    uint64_t first = c->address & iemu_low_mask(v->guest_width) & ~pages;

    /* The set may be far from this CPU; the drain and the other cache come first. */
    __builtin_prefetch(iemu_cache_set(iotlb, iemu_page_index(first, 12)));
    if (iemu_dma_in_flight(v->unit.machine) && !drain(v, c, first, first | pages))
        return false;
    if (c->granularity == GLOBAL) {
        iemu_cache_drop_all(iotlb);
        iemu_cache_drop_all(paging);
    } else if (c->granularity == DOMAIN) {
        iemu_cache_drop_domain(iotlb, c->domain);
        iemu_cache_drop_domain(paging, c->domain);
    } else {
        if (!c->hint)
            iemu_cache_drop_range(paging, c->domain, first, first | pages);
        iemu_cache_drop_range(iotlb, c->domain, first, first | pages);
    }
    return true;
}

/* ---- register commands ----------------------------------------------------------------------- */

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

static uint32_t iotlb_offset(const struct iemu_vtd *v)
{
    return vtd_register_offset(v, VTD_IOTLB);
}

static bool finish_iotlb_command(struct iemu_vtd *v)
{
    struct iemu_regfile *regs = &v->unit.regs;
    uint64_t command = iemu_reg64(regs, iotlb_offset(v));
    uint64_t address = iemu_reg64(regs, vtd_register_offset(v, VTD_IVA));
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
    if (c.granularity != INVALID && !invalidate_iotlb(v, &c))
        return false;
    command &= ~(VTD_MASK(IOTLB, IVT) | VTD_MASK(IOTLB, IAIG));
    iemu_reg64_set(regs, iotlb_offset(v), command | VTD_PUT(IOTLB, IAIG, c.granularity));
    return true;
}

static bool command_waits(const struct iemu_unit *unit)
{
    return ((const struct iemu_vtd *)unit)->commands;
}

static bool take_command(struct iemu_unit *unit, uint64_t command[2])
{
    /* Of two, which software must not have pending (2.1), the context command goes first. */
    command[0] = vtd_of(unit)->commands & VTD_COMMAND_CONTEXT ? VTD_COMMAND_CONTEXT
                                                              : VTD_COMMAND_IOTLB;
    return true;
}

static bool finish_command(struct iemu_unit *unit, const uint64_t command[2])
{
    struct iemu_vtd *v = vtd_of(unit);

    if (command[0] == VTD_COMMAND_CONTEXT)
        finish_context_command(v);
    else if (!finish_iotlb_command(v))
        return false;
    v->commands &= ~(uint32_t)command[0];
    return true;
}

static bool never_waits(const uint64_t command[2])
{
    (void)command;
    return false;
}

static void nothing_to_settle(struct iemu_unit *unit)
{
    (void)unit;
}

static const struct iemu_queue_ops register_ops = {
    .waits = command_waits,
    .fetch = take_command,
    .finish = finish_command,
    .is_wait = never_waits,
    .settle = nothing_to_settle,
};

/* With queued invalidation on, software must not do this; nothing happens then (2.6). */
static void accept_command(struct iemu_vtd *v, bool triggered, enum vtd_command command)
{
    if (!triggered || vtd_status(v, VTD_MASK(GSTS, QIES)))
        return;
    v->commands |= command;
    iemu_queue_run(&v->registers);
}

void vtd_context_command(struct iemu_vtd *v)
{
    accept_command(v, iemu_reg64(&v->unit.regs, VTD_CCMD_AT) & VTD_MASK(CCMD, ICC),
                   VTD_COMMAND_CONTEXT);
}

void vtd_iotlb_command(struct iemu_vtd *v)
{
    accept_command(v, iemu_reg64(&v->unit.regs, iotlb_offset(v)) & VTD_MASK(IOTLB, IVT),
                   VTD_COMMAND_IOTLB);
}

/* ---- queue ----------------------------------------------------------------------------------- */

enum descriptor_type {
    CONTEXT_CACHE = 1,
    IOTLB = 2,
    DEVICE_TLB = 3,
    INTERRUPT_ENTRY = 4,
    WAIT = 5,
};

/* Bits that must be 0, by type (7.2). */
#define CONTEXT_RESERVED   0xfffc00000000f1c0ull
#define IOTLB_RESERVED     0xffffffff0000f100ull
#define IOTLB_RESERVED_HI  0x0000000000000f80ull
#define DEVICE_RESERVED    0xffff0000ffe0f1f0ull /* PFSID is of ECAP.DIT */
#define DEVICE_RESERVED_HI 0x0000000000000ffeull
#define INTERRUPT_RESERVED 0xffff000007fff1e0ull
#define WAIT_RESERVED      0x00000000fffff180ull
#define WAIT_RESERVED_HI   0x0000000000000003ull

static uint64_t queue_bytes(uint64_t iqa)
{
    return (uint64_t)IEMU_PAGE << VTD_GET(IQA, QS, iqa);
}

/* Whether there is a descriptor to look at (7.1). */
static bool descriptor_waits(const struct iemu_unit *unit)
{
    const struct iemu_vtd *v = (const struct iemu_vtd *)unit;
    const struct iemu_regfile *regs = &unit->regs;

    return vtd_status(v, VTD_MASK(GSTS, QIES)) &&
           !(iemu_reg32(regs, VTD_FSTS_AT) & (VTD_MASK(FSTS, IQE) | VTD_MASK(FSTS, ITE))) &&
           iemu_reg32(regs, VTD_IQH_AT) != iemu_reg32(regs, VTD_IQT_AT);
}

static void queue_error(struct iemu_vtd *v, enum vtd_iqei reason)
{
    /* The record is latched only while IQE is clear, which descriptor_waits has checked. */
    iemu_reg64_set(&v->unit.regs, VTD_IQERCD_AT,
                   (iemu_reg64(&v->unit.regs, VTD_IQERCD_AT) & ~VTD_MASK(IQERCD, IQEI)) |
                       VTD_PUT(IQERCD, IQEI, reason));
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
    case DEVICE_TLB:
        if (!VTD_GET(ECAP, DT, v->ecap))
            return VTD_IQEI_TYPE;
        bad = d[0] & DEVICE_RESERVED || d[1] & DEVICE_RESERVED_HI;
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

static bool fetch(struct iemu_unit *unit, uint64_t descriptor[2])
{
    struct iemu_vtd *v = vtd_of(unit);
    struct iemu_regfile *regs = &unit->regs;
    uint64_t iqa = iemu_reg64(regs, VTD_IQA_AT), tail = iemu_reg64(regs, VTD_IQT_AT);
    uint64_t address = (iqa & VTD_MASK(IQA, IQA)) + iemu_reg64(regs, VTD_IQH_AT);
    unsigned reason = 0;

    if (tail >= queue_bytes(iqa))
        reason = VTD_IQEI_TAIL;
    else if (iqa & VTD_MASK(IQA, DW))
        reason = tail & 16 ? VTD_IQEI_TAIL_ALIGNMENT : VTD_IQEI_WIDTH;
    else if (VTD_GET(RTADDR, TTM, v->root))
        reason = VTD_IQEI_MODE;
    else if (!iemu_fetch_entry(&unit->machine->memory, address, descriptor, 2,
                               unit->granule_words))
        reason = VTD_IQEI_FETCH;
    else
        reason = check_descriptor(v, descriptor);
    if (reason)
        queue_error(v, reason);
    return !reason;
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

    if (d & 0x10)
        iemu_cache_drop_keys(cache, d >> 32 & 0xffff, iemu_low_mask(d >> 27 & 0x1f), NULL);
    else
        iemu_cache_drop_all(cache);
}

/* False: every ITag that it may have is in use. */
static bool invalidate_device_tlb(struct iemu_vtd *v, const uint64_t d[2])
{
    uint64_t address = d[1] & ~0xfffull, size = 0xfff;
    uint16_t source = (uint16_t)(d[0] >> 32);

    /* S: the lowest 0 bit from bit 12 on is half the size (7.2); none, or bit 63: everything. */
    if (d[1] & 1 && ~(address | 0xfff))
        size = iemu_low_mask((unsigned)__builtin_ctzll(~(address | 0xfff)) + 1);
    else if (d[1] & 1)
        size = UINT64_MAX;
    return iemu_itags_send(&v->unit, &(struct iemu_invalidation){
                                         .first = address & ~size,
                                         .last = (address & ~size) | size,
                                         .timeout = v->invalidation_timeout,
                                         .requester = source,
                                         .queue = source,
                                         .most = d[0] >> 16 & 0x1f, /* MIP */
                                     });
}

/* Wraps at the queue's size; shrinking the queue under its head is software's error. */
static void move_head(struct iemu_vtd *v)
{
    struct iemu_regfile *regs = &v->unit.regs;
    uint64_t head = iemu_reg64(regs, VTD_IQH_AT) + 16;

    iemu_reg64_set(regs, VTD_IQH_AT,
                   head >= queue_bytes(iemu_reg64(regs, VTD_IQA_AT)) ? 0 : head);
}

static bool finish(struct iemu_unit *unit, const uint64_t d[2])
{
    struct iemu_vtd *v = vtd_of(unit);

    switch (d[0] & 0xf) {
    case CONTEXT_CACHE:
        invalidate_context(v, d[0] >> 4 & 3, d[0] >> 16 & v->domain_mask,
                           (uint16_t)(d[0] >> 32), d[0] >> 48 & 3);
        break;
    case IOTLB:
        if (!invalidate_iotlb(v, &(struct iotlb_command){
                                     .granularity = d[0] >> 4 & 3,
                                     .domain = d[0] >> 16 & v->domain_mask,
                                     .address = d[1] & ~0xfffull,
                                     .mask = d[1] & 0x3f,
                                     .hint = d[1] >> 6 & 1,
                                     .drain_writes = d[0] >> 6 & 1,
                                     .drain_reads = d[0] >> 7 & 1,
                                 }))
            return false;
        break;
    case DEVICE_TLB:
        if (!invalidate_device_tlb(v, d))
            return false;
        break;
    case INTERRUPT_ENTRY:
        if (!vtd_drain_interrupts(v))
            return false;
        invalidate_interrupts(v, d[0]);
        break;
    default:
        /* Not before every device-TLB has answered (7.5). */
        if (unit->itags.busy)
            return false;
        complete_wait(v, d);
        break;
    }
    v->unit.statistics.descriptors++;
    if (iemu_tracing(unit->machine))
        iemu_trace_put(unit->machine, (struct iemu_trace_event){.kind = IEMU_TRACE_COMMAND,
                                                                .a = d[0],
                                                                .b = d[1],
                                                                .unit = (uint16_t)unit->number});
    move_head(v);
    return true;
}

static bool is_wait(const uint64_t descriptor[2])
{
    return (descriptor[0] & 0xf) == WAIT;
}

/* QIE 1->0 takes effect when the queue is drained (2.4), or stands still with an error. */
static void close_if_drained(struct iemu_unit *unit)
{
    struct iemu_vtd *v = vtd_of(unit);
    struct iemu_regfile *regs = &unit->regs;

    if (!v->queue_closing || v->queue.in_progress || descriptor_waits(unit))
        return;
    v->queue_closing = false;
    v->wait_aborted = false;
    iemu_reg64_set(regs, VTD_IQH_AT, 0);
    iemu_reg32_set(regs, VTD_GSTS_AT,
                   iemu_reg32(regs, VTD_GSTS_AT) & ~(uint32_t)VTD_MASK(GSTS, QIES));
}

static const struct iemu_queue_ops queue_ops = {
    .waits = descriptor_waits,
    .fetch = fetch,
    .finish = finish,
    .is_wait = is_wait,
    .settle = close_if_drained,
};

/* ---- answers of device-TLBs (6.4, 7.6) --------------------------------------------------------- */

/* Sets ITE or ICE; the source ID is latched only while the bit is clear (2.12). */
static void device_error(struct iemu_vtd *v, uint64_t status, uint64_t mask, uint64_t source)
{
    struct iemu_regfile *regs = &v->unit.regs;

    if (!(iemu_reg32(regs, VTD_FSTS_AT) & status))
        iemu_reg64_set(regs, VTD_IQERCD_AT, (iemu_reg64(regs, VTD_IQERCD_AT) & ~mask) | source);
    vtd_queue_error(v, (uint32_t)status);
}

/* With translation off an Invalidation Completion is an Unsupported Request (5.1). */
bool vtd_takes_answers(const struct iemu_unit *unit)
{
    return vtd_status((const struct iemu_vtd *)unit, VTD_MASK(GSTS, TES));
}

void vtd_invalidation_timed_out(struct iemu_unit *unit, const struct iemu_itag *tag)
{
    struct iemu_vtd *v = vtd_of(unit);

    /*
     * A pending wait is aborted. The head stays at it for as long as ITE is set, as software
     * finds it on real parts, and passes it then. Anything else is fetched once more.
     */
    if (v->queue.in_progress) {
        v->wait_aborted = is_wait(v->queue.command);
        iemu_queue_reset(&v->queue);
    }
    device_error(v, VTD_MASK(FSTS, ITE), VTD_MASK(IQERCD, ITESID),
                 VTD_PUT(IQERCD, ITESID, tag->requester));
}

void vtd_queue_restart(struct iemu_vtd *v)
{
    if (v->wait_aborted && !(iemu_reg32(&v->unit.regs, VTD_FSTS_AT) & VTD_MASK(FSTS, ITE))) {
        v->wait_aborted = false;
        move_head(v);
    }
    vtd_invalidation_run(v);
}

void vtd_unexpected_answer(struct iemu_unit *unit, uint16_t requester)
{
    device_error(vtd_of(unit), VTD_MASK(FSTS, ICE), VTD_MASK(IQERCD, ICESID),
                 VTD_PUT(IQERCD, ICESID, requester));
}

/* ---- both ------------------------------------------------------------------------------------ */

void vtd_invalidation_run(struct iemu_vtd *v)
{
    if (v->commands)
        iemu_queue_run(&v->registers);
    iemu_queue_run(&v->queue);
    close_if_drained(&v->unit);
}

void vtd_invalidation_init(struct iemu_vtd *v)
{
    iemu_queue_init(&v->registers, &v->unit, &register_ops);
    iemu_queue_init(&v->queue, &v->unit, &queue_ops);
}

void vtd_invalidation_reset(struct iemu_vtd *v)
{
    iemu_queue_reset(&v->registers);
    iemu_queue_reset(&v->queue);
    iemu_itags_reset(&v->unit);
    v->commands = 0;
    v->wait_aborted = false;
    v->queue_closing = false;
}

bool vtd_step(struct iemu_unit *unit)
{
    struct iemu_vtd *v = vtd_of(unit);

    return iemu_queue_step(&v->registers) || iemu_queue_step(&v->queue);
}

uint32_t vtd_invalidation_state(struct iemu_unit *unit)
{
    uint32_t registers = iemu_queue_state(&vtd_of(unit)->registers);

    if (registers)
        return registers;
    return unit->itags.busy ? (uint32_t)IEMU_INVALIDATION_IN_PROGRESS
                            : iemu_queue_state(&vtd_of(unit)->queue);
}
