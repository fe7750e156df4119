/* An AMD-Vi unit: its registers and what writing them does. */
#include "amdvi.h"

#include <stdlib.h>

#define WINDOW 0x4000u /* 16 KiB; 512 KiB would need EFR.PCSup (3) */

static const struct iemu_register_info registers[] = {
#define REGISTER(name, base, offset, width, count, stride, description)                            \
    IEMU_REGISTER_ROW(name, base, offset, width, count, stride, description)
#define FIELD(reg, name, high, low, access, reset, needs)
#include "registers.def"
#undef REGISTER
#undef FIELD
};

static const struct iemu_field_info fields[] = {
#define REGISTER(name, base, offset, width, count, stride, description)
#define FIELD(reg, name, high, low, access, reset, needs)                                          \
    IEMU_FIELD_ROW(AMDVI_##reg, name, high, low, access, reset, #needs)
#include "registers.def"
#undef REGISTER
#undef FIELD
};

static const struct iemu_fault_info faults[] = {
#define FAULT(slug, code, name, qualified, flags, condition, section)                              \
    IEMU_FAULT_ROW(slug, code, name, qualified, condition, section)
#include "faults.def"
#undef FAULT
};

const struct iemu_vendor_tables amdvi_tables = {
    .registers = registers,
    .register_count = IEMU_COUNT(registers),
    .fields = fields,
    .field_count = IEMU_COUNT(fields),
    .faults = faults,
    .fault_count = IEMU_COUNT(faults),
};

/* Whether a field is there, in the order of the table: the `needs` column, evaluated. */
static bool has_field(struct iemu_unit *unit, size_t field)
{
    uint64_t value_EFR = amdvi_of(unit)->efr;
#define ALWAYS         true
#define HAS(reg, name) (AMDVI_GET(reg, name, value_##reg) != 0)
    const bool there[] = {
#define REGISTER(name, base, offset, width, count, stride, description)
#define FIELD(reg, name, high, low, access, reset, needs) needs,
#include "registers.def"
#undef REGISTER
#undef FIELD
    };

    return field < IEMU_COUNT(there) && there[field];
}

static uint32_t register_offset(struct iemu_unit *unit, size_t reg)
{
    (void)unit;
    return reg < AMDVI_REGISTERS ? registers[reg].offset : UINT32_MAX;
}

/* ---- side effects of writes ----------------------------------------------------------------- */

static void empty_ring(struct iemu_amdvi *a, uint32_t head, uint32_t tail)
{
    iemu_reg64_set(&a->unit.regs, head, 0);
    iemu_reg64_set(&a->unit.regs, tail, 0);
}

/* A pointer beyond the ring is undefined; it is cut to the ring here (3.3). */
static void cut_pointer(struct iemu_amdvi *a, uint32_t base, uint32_t pointer)
{
    iemu_reg64_set(&a->unit.regs, pointer,
                   iemu_reg64(&a->unit.regs, pointer) & (amdvi_ring_bytes(a, base) - 1));
}

/* Both Run bits follow from the enables and a legal length (3.4). */
static void rings_changed(struct iemu_amdvi *a)
{
    amdvi_set_status(a, AMDVI_MASK(Status, EventLogRun),
                     amdvi_control(a, AMDVI_MASK(Control, IommuEn)) &&
                         amdvi_control(a, AMDVI_MASK(Control, EventLogEn)) &&
                         amdvi_ring_length(a, AMDVI_EvtLogBase_AT) >= 8);
    amdvi_update_command_run(a);
    iemu_queue_run(&a->queue);
}

/* Base, length and the pointer that hardware owns belong to a ring that runs (3.3). */
static bool refuses_write(const struct iemu_amdvi *a, uint16_t reg)
{
    switch (reg) {
    case AMDVI_CmdBufBase:
    case AMDVI_CmdBufHead:
        return amdvi_status(a, AMDVI_MASK(Status, CmdBufRun));
    case AMDVI_EvtLogBase:
    case AMDVI_EvtLogTail:
        return amdvi_status(a, AMDVI_MASK(Status, EventLogRun));
    default:
        return reg == IEMU_NO_REGISTER;
    }
}

static void written(struct iemu_amdvi *a, uint16_t reg)
{
    switch (reg) {
    case AMDVI_DevTabBase:
        /* While stopped, a new table drops what was cached of the old one (13). */
        if (!amdvi_control(a, AMDVI_MASK(Control, IommuEn)))
            iemu_cache_drop_all(&a->unit.cache[IEMU_CACHE_CONTEXT]);
        break;
    case AMDVI_CmdBufBase:
        empty_ring(a, AMDVI_CmdBufHead_AT, AMDVI_CmdBufTail_AT);
        rings_changed(a);
        break;
    case AMDVI_EvtLogBase:
        empty_ring(a, AMDVI_EvtLogHead_AT, AMDVI_EvtLogTail_AT);
        rings_changed(a);
        break;
    case AMDVI_Control:
        rings_changed(a);
        amdvi_update_quick(a);
        break;
    case AMDVI_ExclBase:
        amdvi_update_quick(a);
        break;
    case AMDVI_CmdBufHead:
        cut_pointer(a, AMDVI_CmdBufBase_AT, AMDVI_CmdBufHead_AT);
        break;
    case AMDVI_CmdBufTail:
        cut_pointer(a, AMDVI_CmdBufBase_AT, AMDVI_CmdBufTail_AT);
        iemu_queue_run(&a->queue);
        break;
    case AMDVI_EvtLogHead:
        cut_pointer(a, AMDVI_EvtLogBase_AT, AMDVI_EvtLogHead_AT);
        break;
    case AMDVI_EvtLogTail:
        cut_pointer(a, AMDVI_EvtLogBase_AT, AMDVI_EvtLogTail_AT);
        break;
    default:
        break;
    }
}

/* ---- register access ------------------------------------------------------------------------ */

static uint64_t mmio_read(struct iemu_unit *unit, uint32_t offset, uint32_t size)
{
    uint64_t value = iemu_regfile_read(&unit->regs, offset);

    if (size == 8)
        value |= (uint64_t)iemu_regfile_read(&unit->regs, offset + 4) << 32;
    return value;
}

static void mmio_write(struct iemu_unit *unit, uint32_t offset, uint32_t size, uint64_t value)
{
    struct iemu_amdvi *a = amdvi_of(unit);
    const struct iemu_word *word = &unit->regs.word[offset / 4];
    bool refused = refuses_write(a, word->reg);

    /* A register is stored whole before anything follows from it. */
    if (!refused)
        iemu_regfile_write(&unit->regs, offset, (uint32_t)value);
    if (size == 8 && !refuses_write(a, word[1].reg))
        iemu_regfile_write(&unit->regs, offset + 4, (uint32_t)(value >> 32));
    if (!refused)
        written(a, word->reg);
}

/* ---- life cycle ----------------------------------------------------------------------------- */

static void reset(struct iemu_unit *unit, uint32_t kind)
{
    struct iemu_amdvi *a = amdvi_of(unit);

    iemu_queue_reset(&a->queue);
    iemu_itags_reset(unit);
    iemu_regfile_reset(&unit->regs, kind == IEMU_RESET_POWER_ON);
    for (uint32_t i = 0; i < IEMU_CACHES; i++)
        iemu_cache_drop_all(&unit->cache[i]);
    a->command_error = false;
    a->message_held = false;
    amdvi_update_quick(a);
}

static void resume(struct iemu_unit *unit)
{
    struct iemu_amdvi *a = amdvi_of(unit);

    if (a->message_held)
        amdvi_send_message(a);
    iemu_queue_run(&a->queue);
}

static bool step(struct iemu_unit *unit)
{
    return iemu_queue_step(&amdvi_of(unit)->queue);
}

/* An answer to nothing has no event of its own (10.1). */
static void unexpected_answer(struct iemu_unit *unit, uint16_t requester)
{
    (void)unit;
    (void)requester;
}

static bool takes_answers(const struct iemu_unit *unit)
{
    (void)unit;
    return true;
}

static uint32_t invalidation_state(struct iemu_unit *unit)
{
    if (unit->itags.busy)
        return IEMU_INVALIDATION_IN_PROGRESS;
    return iemu_queue_state(&amdvi_of(unit)->queue);
}

static void describe(struct iemu_unit *unit, uint32_t cache, const struct iemu_tag *tag,
                     const struct iemu_line *line, struct iemu_cache_entry *entry)
{
    if (cache != IEMU_CACHE_INTERRUPT) {
        iemu_describe_line(unit, cache, tag, line, entry);
        return;
    }
    entry->requester = (uint16_t)(iemu_tag_who(tag) >> 16);
    entry->address = iemu_tag_who(tag) & 0xffff; /* interrupt index */
    entry->output = line->value[0];
}

static void destroy(struct iemu_unit *unit)
{
    iemu_queue_reset(&amdvi_of(unit)->queue);
    iemu_unit_free(unit);
    free(unit);
}

static const struct iemu_unit_ops amdvi_ops = {
    .vendor = IEMU_AMDVI,
    .translate = amdvi_translate,
    .translate_watched = amdvi_translate_watched,
    .mmio_read = mmio_read,
    .mmio_write = mmio_write,
    .remap_interrupt = amdvi_remap_interrupt,
    .look_again = amdvi_look_again,
    .takes_answers = takes_answers,
    .invalidation_timed_out = amdvi_invalidation_timed_out,
    .unexpected_answer = unexpected_answer,
    .step = step,
    .resume = resume,
    .reset = reset,
    .describe = describe,
    .invalidation_state = invalidation_state,
    .has_field = has_field,
    .register_offset = register_offset,
    .destroy = destroy,
};

static int place_registers(struct iemu_amdvi *a)
{
    struct iemu_regfile *regs = &a->unit.regs;
    int error = IEMU_OK;

    for (uint16_t i = 0; !error && i < AMDVI_REGISTERS; i++)
        error = iemu_regfile_place(regs, &registers[i], i, registers[i].offset, 1);
    for (size_t i = 0; !error && i < IEMU_COUNT(fields); i++) {
        if (has_field(&a->unit, i))
            iemu_regfile_field(regs, &registers[fields[i].reg], &fields[i],
                               registers[fields[i].reg].offset, 1);
    }
    if (error)
        return error;
    regs->word[AMDVI_EFR_AT / 4].reset = (uint32_t)a->efr;
    regs->word[AMDVI_EFR_AT / 4 + 1].reset = (uint32_t)(a->efr >> 32);
    return IEMU_OK;
}

/* What this version implements of EFR; everything else is refused. */
#define IMPLEMENTED                                                                                \
    (AMDVI_MASK(EFR, PreFSup) | AMDVI_MASK(EFR, IASup) | AMDVI_MASK(EFR, HATS) |                   \
     AMDVI_MASK(EFR, MsiCapMmioSup))

struct iemu_unit *amdvi_create(struct iemu_machine *machine, const struct iemu_amdvi_config *config,
                               int *error)
{
    struct iemu_amdvi *a;
    unsigned hats = (unsigned)AMDVI_GET(EFR, HATS, config->efr);

    *error = IEMU_E_ARGUMENT;
    if (config->efr & ~IMPLEMENTED || config->unit.window != WINDOW)
        return NULL;
    a = calloc(1, sizeof(*a));
    if (!a) {
        *error = IEMU_E_NO_MEMORY;
        return NULL;
    }
    a->efr = config->efr;
    a->np_cache = config->np_cache;
    a->iotlb_sup = config->iotlb_sup;
    a->levels = (uint8_t)(hats == 3 ? 0 : 4 + hats);
    *error = iemu_unit_init(&a->unit, machine, &config->unit, &amdvi_ops);
    if (*error) {
        free(a);
        return NULL;
    }
    *error = place_registers(a);
    if (*error) {
        iemu_unit_abandon(&a->unit);
        free(a);
        return NULL;
    }
    amdvi_invalidation_init(a);
    reset(&a->unit, IEMU_RESET_POWER_ON);
    return &a->unit;
}
