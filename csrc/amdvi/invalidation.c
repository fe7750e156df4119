/* The command buffer (9): what commands drop, and how a bad one stops it. */
#include "amdvi.h"

enum opcode {
    COMPLETION_WAIT = 1,
    INVALIDATE_DEVTAB_ENTRY = 2,
    INVALIDATE_IOMMU_PAGES = 3,
    INVALIDATE_IOTLB_PAGES = 4,
    INVALIDATE_INTERRUPT_TABLE = 5,
    PREFETCH_IOMMU_PAGES = 6,
    INVALIDATE_IOMMU_ALL = 8,
    OPCODES = 16,
};

#define OPCODE(command) ((unsigned)((command)[0] >> 60))

/* Bits that must be 0 (9.1). GN and Type need features that EFR does not report. */
static const uint64_t reserved[OPCODES][2] = {
    [COMPLETION_WAIT] = {0x0ff0000000000000ull, 0},
    [INVALIDATE_DEVTAB_ENTRY] = {0x0fffffffffff0000ull, UINT64_MAX},
    [INVALIDATE_IOMMU_PAGES] = {0x0fff0000fff00000ull, 0xffcull},
    [INVALIDATE_IOTLB_PAGES] = {0, 0xffeull},
    [INVALIDATE_INTERRUPT_TABLE] = {0x0fffffffffff0000ull, UINT64_MAX},
    [PREFETCH_IOMMU_PAGES] = {0x0ff0000000ff0000ull, 0xfeeull},
    [INVALIDATE_IOMMU_ALL] = {0x0fffffffffffffffull, UINT64_MAX},
};

static bool supported(const struct iemu_amdvi *a, unsigned opcode)
{
    switch (opcode) {
    case COMPLETION_WAIT:
    case INVALIDATE_DEVTAB_ENTRY:
    case INVALIDATE_IOMMU_PAGES:
    case INVALIDATE_INTERRUPT_TABLE:
        return true;
    case INVALIDATE_IOTLB_PAGES:
        return a->iotlb_sup;
    case PREFETCH_IOMMU_PAGES:
        return AMDVI_GET(EFR, PreFSup, a->efr);
    case INVALIDATE_IOMMU_ALL:
        return AMDVI_GET(EFR, IASup, a->efr);
    default: /* reserved, or of a feature that is not there */
        return false;
    }
}

/* ---- effects (9.2): never more is dropped than is asked for --------------------------------- */

struct pages {
    uint64_t first;
    uint64_t last;
    bool all;
};

/* Address and S of a command: one page, or the size that the lowest 0 bit tells (9.2). */
static struct pages pages_of(uint64_t operand)
{
    uint64_t address = operand & ~0xfffull, size = 0xfff;
    struct pages pages = {0};

    if (operand & 1) {
        unsigned zero = (unsigned)__builtin_ctzll(~((operand & 0x000fffffffffffffull) | 0xfff));

        pages.all = zero > 51;
        size = iemu_low_mask(zero + 1);
    }
    pages.first = address & ~size;
    pages.last = pages.first | size;
    return pages;
}

static void drop_pages(struct iemu_cache *cache, uint32_t domain, const struct pages *pages)
{
    if (pages->all)
        iemu_cache_drop_domain(cache, domain);
    else
        iemu_cache_drop_range(cache, domain, pages->first, pages->last);
}

static void invalidate_pages(struct iemu_amdvi *a, uint32_t domain, uint64_t operand,
                             bool directories)
{
    const struct pages pages = pages_of(operand);

    drop_pages(&a->unit.cache[IEMU_CACHE_IOTLB], domain, &pages);
    if (directories)
        drop_pages(&a->unit.cache[IEMU_CACHE_PAGING], domain, &pages);
}

/* Nothing is loaded early, which is legal; but Inval=1 invalidates. */
static void prefetch(struct iemu_amdvi *a, const uint64_t command[2])
{
    struct amdvi_passage p = {.use_caches = true};
    struct amdvi_dte dte;

    if (command[1] & 0x10 && !amdvi_find_dte(a, (uint16_t)command[0], &p, &dte) && DTE_V(&dte) &&
        DTE_TV(&dte))
        invalidate_pages(a, DTE_DOMAIN(&dte), command[1], false);
}

static void stop(struct iemu_amdvi *a, uint32_t diagnostic)
{
    uint64_t head = iemu_reg64(&a->unit.regs, AMDVI_CmdBufHead_AT);

    a->command_error = true;
    amdvi_report_command(a, diagnostic, 0, amdvi_ring_base(a, AMDVI_CmdBufBase_AT) + head);
}

/* Control.InvTimeOut in ns; 0: none (3.4). */
static uint64_t invalidation_timeout(const struct iemu_amdvi *a)
{
    uint64_t timeout = 1000000;
    unsigned field =
        (unsigned)AMDVI_GET(Control, InvTimeOut, iemu_reg64(&a->unit.regs, AMDVI_Control_AT));

    if (!field || field == 7)
        return 0;
    while (--field)
        timeout *= 10;
    return timeout;
}

/* False: as many are outstanding as may be. */
static bool invalidate_device_tlb(struct iemu_amdvi *a, const uint64_t command[2])
{
    struct pages pages = pages_of(command[1]);

    if (pages.all)
        pages = (struct pages){.last = UINT64_MAX};
    return iemu_itags_send(
        &a->unit, &(struct iemu_invalidation){
                      .first = pages.first,
                      .last = pages.last,
                      .timeout = invalidation_timeout(a),
                      .command = amdvi_ring_base(a, AMDVI_CmdBufBase_AT) +
                                 iemu_reg64(&a->unit.regs, AMDVI_CmdBufHead_AT),
                      .requester = (uint16_t)command[0],
                      .queue = (uint16_t)(command[0] >> 32),
                      .most = (uint8_t)(command[0] >> 24), /* Maxpend */
                  });
}

/* The command counts as complete (8). */
void amdvi_invalidation_timed_out(struct iemu_unit *unit, const struct iemu_itag *tag)
{
    amdvi_report_command(amdvi_of(unit), AMDVI_DIAG_INVALIDATION_TIMEOUT, tag->requester,
                         tag->command);
}

/* Commands run one after the other, so older ones are complete, and f=1 asks for nothing more. */
static bool complete_wait(struct iemu_amdvi *a, const uint64_t command[2])
{
    if (command[0] & 1 && !iemu_unit_store(&a->unit.machine->memory,
                                           command[0] & 0x000ffffffffffff8ull, &command[1], 8)) {
        stop(a, AMDVI_DIAG_COMMAND_STORE);
        return false;
    }
    if (command[0] & 2) {
        amdvi_set_status(a, AMDVI_MASK(Status, ComWaitInt), true);
        if (amdvi_control(a, AMDVI_MASK(Control, ComWaitIntEn)))
            amdvi_send_message(a);
    }
    return true;
}

static bool execute(struct iemu_amdvi *a, const uint64_t command[2])
{
    uint16_t device = (uint16_t)command[0];

    switch (OPCODE(command)) {
    case INVALIDATE_DEVTAB_ENTRY:
        iemu_cache_drop_keys(&a->unit.cache[IEMU_CACHE_CONTEXT], device, 0, NULL);
        return true;
    case INVALIDATE_IOMMU_PAGES:
        invalidate_pages(a, command[0] >> 32 & 0xffff, command[1], command[1] & 2);
        return true;
    case INVALIDATE_INTERRUPT_TABLE:
        iemu_cache_drop_keys(&a->unit.cache[IEMU_CACHE_INTERRUPT], (uint64_t)device << 16, 0xffff,
                             NULL);
        return true;
    case INVALIDATE_IOTLB_PAGES:
        return true; /* sent already */
    case PREFETCH_IOMMU_PAGES:
        prefetch(a, command);
        return true;
    case INVALIDATE_IOMMU_ALL:
        for (uint32_t i = 0; i < IEMU_CACHES; i++)
            iemu_cache_drop_all(&a->unit.cache[i]);
        return true;
    default:
        return complete_wait(a, command);
    }
}

/* ---- the ring ------------------------------------------------------------------------------- */

static bool may_run(const struct iemu_amdvi *a)
{
    return amdvi_control(a, AMDVI_MASK(Control, IommuEn)) &&
           amdvi_control(a, AMDVI_MASK(Control, CmdBufEn)) &&
           amdvi_ring_length(a, AMDVI_CmdBufBase_AT) >= 8 && !a->command_error;
}

/* A disable does not interrupt a command: CmdBufRun stays set until it is complete. */
void amdvi_update_command_run(struct iemu_amdvi *a)
{
    if (!amdvi_control(a, AMDVI_MASK(Control, CmdBufEn)))
        a->command_error = false;
    amdvi_set_status(a, AMDVI_MASK(Status, CmdBufRun), may_run(a) || a->queue.in_progress);
}

static bool waits(const struct iemu_unit *unit)
{
    const struct iemu_amdvi *a = (const struct iemu_amdvi *)unit;

    return may_run(a) && iemu_reg64(&unit->regs, AMDVI_CmdBufHead_AT) !=
                             iemu_reg64(&unit->regs, AMDVI_CmdBufTail_AT);
}

static bool fetch(struct iemu_unit *unit, uint64_t command[2])
{
    struct iemu_amdvi *a = amdvi_of(unit);
    uint64_t address =
        amdvi_ring_base(a, AMDVI_CmdBufBase_AT) + iemu_reg64(&unit->regs, AMDVI_CmdBufHead_AT);
    unsigned opcode;

    if (!iemu_fetch_entry(&unit->machine->memory, address, command, 2, unit->granule_words)) {
        stop(a, AMDVI_DIAG_COMMAND_FETCH);
        return false;
    }
    opcode = OPCODE(command);
    if (!supported(a, opcode))
        stop(a, AMDVI_DIAG_COMMAND_UNKNOWN);
    else if (command[0] & reserved[opcode][0] || command[1] & reserved[opcode][1])
        stop(a, AMDVI_DIAG_COMMAND_RESERVED);
    return !a->command_error;
}

static bool is_wait(const uint64_t command[2])
{
    return OPCODE(command) == COMPLETION_WAIT;
}

static bool finish(struct iemu_unit *unit, const uint64_t command[2])
{
    struct iemu_amdvi *a = amdvi_of(unit);
    uint64_t head = iemu_reg64(&unit->regs, AMDVI_CmdBufHead_AT) + AMDVI_RING_ENTRY;
    const struct iemu_drain drain = {
        .unit = unit, .last = UINT64_MAX, .any_domain = true, .reads = true, .writes = true};

    /* Every device-TLB has answered, and what used a translation that an older command dropped
     * is over (9.2). */
    if (is_wait(command) && (unit->itags.busy || !iemu_dma_drain(unit->machine, &drain)))
        return false;
    if (OPCODE(command) == INVALIDATE_IOTLB_PAGES && !invalidate_device_tlb(a, command))
        return false;
    if (!execute(a, command))
        return true;
    a->unit.statistics.descriptors++;
    if (iemu_tracing(unit->machine))
        iemu_trace_put(unit->machine, (struct iemu_trace_event){.kind = IEMU_TRACE_COMMAND,
                                                                .a = command[0],
                                                                .b = command[1],
                                                                .unit = (uint16_t)unit->number});
    iemu_reg64_set(&unit->regs, AMDVI_CmdBufHead_AT,
                   head & (amdvi_ring_bytes(a, AMDVI_CmdBufBase_AT) - 1));
    return true;
}

static void settle(struct iemu_unit *unit)
{
    amdvi_update_command_run(amdvi_of(unit));
}

void amdvi_invalidation_init(struct iemu_amdvi *a)
{
    static const struct iemu_queue_ops ops = {
        .waits = waits,
        .fetch = fetch,
        .finish = finish,
        .is_wait = is_wait,
        .settle = settle,
    };

    iemu_queue_init(&a->queue, &a->unit, &ops);
}
