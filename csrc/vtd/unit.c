/* A VT-d unit: its registers and what writing them does. */
#include "vtd.h"

#include <stdlib.h>
#include <string.h>

static const struct iemu_register_info registers[] = {
#define REGISTER(name, base, offset, width, count, stride, description)                        \
    IEMU_REGISTER_ROW(name, base, offset, width, count, stride, description)
#define FIELD(reg, name, high, low, access, reset, needs)
#include "registers.def"
#undef REGISTER
#undef FIELD
};

static const struct iemu_field_info fields[] = {
#define REGISTER(name, base, offset, width, count, stride, description)
#define FIELD(reg, name, high, low, access, reset, needs)                                      \
    IEMU_FIELD_ROW(VTD_##reg, name, high, low, access, reset, #needs)
#include "registers.def"
#undef REGISTER
#undef FIELD
};

static const struct iemu_fault_info faults[] = {
#define FAULT(slug, code, name, qualified, tr, td, condition, section)                         \
    IEMU_FAULT_ROW(slug, code, name, qualified, condition, section)
#include "faults.def"
#undef FAULT
};

const struct iemu_vendor_tables vtd_tables = {
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
    const struct iemu_vtd *v = vtd_of(unit);
    uint64_t value_CAP = v->cap, value_ECAP = v->ecap;
#define ALWAYS true
#define HAS(reg, name) (VTD_GET(reg, name, value_##reg) != 0)
    const bool there[] = {
#define REGISTER(name, base, offset, width, count, stride, description)
#define FIELD(reg, name, high, low, access, reset, needs) needs,
#include "registers.def"
#undef REGISTER
#undef FIELD
    };

    return field < IEMU_COUNT(there) && there[field];
}

uint32_t vtd_register_offset(const struct iemu_vtd *v, size_t reg)
{
    uint32_t base = 0;

    if (reg >= VTD_REGISTERS)
        return UINT32_MAX;
    if (registers[reg].base == IEMU_BASE_IRO)
        base = (uint32_t)VTD_GET(ECAP, IRO, v->ecap) * 16;
    else if (registers[reg].base == IEMU_BASE_FRO)
        base = (uint32_t)VTD_GET(CAP, FRO, v->cap) * 16;
    return base + registers[reg].offset;
}

static uint32_t register_offset(struct iemu_unit *unit, size_t reg)
{
    return vtd_register_offset(vtd_of(unit), reg);
}

static uint32_t register_count(const struct iemu_vtd *v, size_t reg)
{
    return reg == VTD_FRCD ? vtd_fault_records(v) : 1;
}

/* ---- GCMD and GSTS (2.4) --------------------------------------------------------------------- */

static void set_status(struct iemu_vtd *v, uint64_t mask, bool on)
{
    uint32_t status = iemu_reg32(&v->unit.regs, VTD_GSTS_AT);

    iemu_reg32_set(&v->unit.regs, VTD_GSTS_AT,
                   on ? status | (uint32_t)mask : status & ~(uint32_t)mask);
}

/* With neither remapping on, recording starts at the first record again. */
static void restart_records_if_off(struct iemu_vtd *v)
{
    if (!vtd_status(v, VTD_MASK(GSTS, TES) | VTD_MASK(GSTS, IRES)))
        v->fault_index = 0;
}

static void set_root(struct iemu_vtd *v)
{
    v->root = iemu_reg64(&v->unit.regs, VTD_RTADDR_AT);
    set_status(v, VTD_MASK(GSTS, RTPS), true);
    if (VTD_GET(CAP, ESRTPS, v->cap))
        vtd_drop_everything(v);
}

/* What is in flight lands before TES and IRES follow (2.4). False: not all of it yet. */
static bool drain_for(const struct iemu_vtd *v, uint32_t changed)
{
    const struct iemu_drain drain = {
        .unit = (struct iemu_unit *)&v->unit,
        .last = UINT64_MAX,
        .any_domain = true,
        .reads = true,
        .writes = true,
    };

    return !(changed & (VTD_MASK(GCMD, TE) | VTD_MASK(GCMD, IRE))) ||
           iemu_dma_drain(v->unit.machine, &drain);
}

static void toggle_translation(struct iemu_vtd *v, bool on)
{
    set_status(v, VTD_MASK(GSTS, TES), on);
    restart_records_if_off(v);
}

static void toggle_queue(struct iemu_vtd *v, bool on)
{
    if (on) {
        iemu_reg64_set(&v->unit.regs, VTD_IQH_AT, 0);
        set_status(v, VTD_MASK(GSTS, QIES), true);
    } else {
        v->queue_closing = true;
    }
    vtd_invalidation_run(v);
}

static void toggle_interrupts(struct iemu_vtd *v, bool on)
{
    set_status(v, VTD_MASK(GSTS, IRES), on);
    if (!on && VTD_GET(CAP, ESIRTPS, v->cap))
        iemu_cache_drop_all(&v->unit.cache[IEMU_CACHE_INTERRUPT]);
    restart_records_if_off(v);
}

static void set_interrupt_table(struct iemu_vtd *v)
{
    v->interrupt_table = iemu_reg64(&v->unit.regs, VTD_IRTA_AT);
    set_status(v, VTD_MASK(GSTS, IRTPS), true);
    if (VTD_GET(CAP, ESIRTPS, v->cap))
        iemu_cache_drop_all(&v->unit.cache[IEMU_CACHE_INTERRUPT]);
}

/*
 * Software changes one bit at a time; of several changed bits each is done, in this order. A
 * toggle bit that equals its status is no command; a one-shot bit of 0 is none.
 */
static void global_command(struct iemu_vtd *v, uint32_t command)
{
    uint32_t changed = command ^ iemu_reg32(&v->unit.regs, VTD_GSTS_AT);

    v->command_held = !drain_for(v, changed);
    v->held_command = command;
    if (v->command_held)
        return;
    if (command & VTD_MASK(GCMD, QIE))
        v->queue_closing = false; /* whatever was still to be closed stays open */
    if (changed & VTD_MASK(GCMD, TE))
        toggle_translation(v, command & VTD_MASK(GCMD, TE));
    if (command & VTD_MASK(GCMD, SRTP))
        set_root(v);
    /* WBF: the model has no write buffer, so WBFS is clear again at once. */
    if (changed & VTD_MASK(GCMD, QIE))
        toggle_queue(v, command & VTD_MASK(GCMD, QIE));
    if (command & VTD_MASK(GCMD, SIRTP))
        set_interrupt_table(v);
    if (changed & VTD_MASK(GCMD, IRE))
        toggle_interrupts(v, command & VTD_MASK(GCMD, IRE));
    if (changed & VTD_MASK(GCMD, CFI))
        set_status(v, VTD_MASK(GSTS, CFIS), command & VTD_MASK(GCMD, CFI));
    vtd_update_quick(v);
}

/* ---- protected memory (2.11) ----------------------------------------------------------------- */

static void protection_written(struct iemu_vtd *v)
{
    struct iemu_regfile *regs = &v->unit.regs;
    uint64_t granule = iemu_low_mask(v->protected_shift);
    uint32_t pmen = iemu_reg32(regs, VTD_PMEN_AT);

    v->protect = pmen & VTD_MASK(PMEN, EPM);
    iemu_reg32_set(regs, VTD_PMEN_AT,
                   (pmen & ~(uint32_t)VTD_MASK(PMEN, PRS)) | (uint32_t)v->protect);
    regs->locked = v->protect;
    v->protected_low[0] = iemu_reg32(regs, VTD_PLMBASE_AT);
    v->protected_low[1] = iemu_reg32(regs, VTD_PLMLIMIT_AT) | granule;
    v->protected_high[0] = iemu_reg64(regs, VTD_PHMBASE_AT);
    v->protected_high[1] = iemu_reg64(regs, VTD_PHMLIMIT_AT) | granule;
    /* A region that the unit does not have is empty. */
    if (!VTD_GET(CAP, PLMR, v->cap))
        v->protected_low[0] = UINT64_MAX;
    if (!VTD_GET(CAP, PHMR, v->cap))
        v->protected_high[0] = UINT64_MAX;
    vtd_update_quick(v);
}

/* ---- register access ------------------------------------------------------------------------- */

static uint64_t mmio_read(struct iemu_unit *unit, uint32_t offset, uint32_t size)
{
    uint64_t value = iemu_regfile_read(&unit->regs, offset);

    if (size == 8)
        value |= (uint64_t)iemu_regfile_read(&unit->regs, offset + 4) << 32;
    return value;
}

/* A register with a pending command must not be written: the write is lost (2.1). */
static bool refuses_write(const struct iemu_vtd *v, uint16_t reg)
{
    return (reg == VTD_CCMD && v->commands & VTD_COMMAND_CONTEXT) ||
           ((reg == VTD_IOTLB || reg == VTD_IVA) && v->commands & VTD_COMMAND_IOTLB);
}

static void write_dword(struct iemu_vtd *v, uint32_t offset, uint32_t value)
{
    const struct iemu_word *word = &v->unit.regs.word[offset / 4];

    if (word->reg == IEMU_NO_REGISTER || refuses_write(v, word->reg))
        return;
    iemu_regfile_write(&v->unit.regs, offset, value);
    switch (word->reg) {
    case VTD_GCMD:
        global_command(v, value & word->writable);
        break;
    case VTD_CCMD:
        if (word->part == 1) /* the byte with bit 63 is the trigger (2.1) */
            vtd_context_command(v);
        break;
    case VTD_IOTLB:
        if (word->part == 1)
            vtd_iotlb_command(v);
        break;
    case VTD_FSTS:
        vtd_faults_acknowledged(v);
        vtd_queue_restart(v);
        break;
    case VTD_FRCD:
        vtd_faults_acknowledged(v);
        break;
    case VTD_FECTL:
        vtd_event_control_written(v, VTD_FECTL_AT);
        break;
    case VTD_ICS:
        if (!(word->value & VTD_MASK(ICS, IWC)))
            vtd_event_withdraw(v, VTD_IECTL_AT);
        break;
    case VTD_IECTL:
        vtd_event_control_written(v, VTD_IECTL_AT);
        break;
    case VTD_IQT:
        if (word->part == 0)
            vtd_invalidation_run(v);
        break;
    case VTD_PMEN:
    case VTD_PLMBASE:
    case VTD_PLMLIMIT:
    case VTD_PHMBASE:
    case VTD_PHMLIMIT:
        protection_written(v);
        break;
    default:
        break;
    }
}

static void mmio_write(struct iemu_unit *unit, uint32_t offset, uint32_t size, uint64_t value)
{
    struct iemu_vtd *v = vtd_of(unit);

    write_dword(v, offset, (uint32_t)value);
    if (size == 8)
        write_dword(v, offset + 4, (uint32_t)(value >> 32));
}

/* ---- life cycle ------------------------------------------------------------------------------ */

static void reset(struct iemu_unit *unit, uint32_t kind)
{
    struct iemu_vtd *v = vtd_of(unit);

    vtd_invalidation_reset(v);
    iemu_regfile_reset(&unit->regs, kind == IEMU_RESET_POWER_ON);
    for (uint32_t i = 0; i < IEMU_CACHES; i++)
        iemu_cache_drop_all(&unit->cache[i]);
    v->root = 0;
    v->interrupt_table = 0;
    v->fault_index = 0;
    v->command_held = false;
    protection_written(v);
}

static void resume(struct iemu_unit *unit)
{
    struct iemu_vtd *v = vtd_of(unit);

    vtd_event_control_written(v, VTD_FECTL_AT);
    vtd_event_control_written(v, VTD_IECTL_AT);
    if (v->command_held)
        global_command(v, v->held_command);
    vtd_invalidation_run(v);
}

static void destroy(struct iemu_unit *unit)
{
    vtd_invalidation_reset(vtd_of(unit));
    iemu_unit_free(unit);
    free(unit);
}

static const struct iemu_unit_ops vtd_ops = {
    .vendor = IEMU_VTD,
    .translate = vtd_translate,
    .translate_watched = vtd_translate_watched,
    .mmio_read = mmio_read,
    .mmio_write = mmio_write,
    .remap_interrupt = vtd_remap_interrupt,
    .look_again = vtd_look_again,
    .takes_answers = vtd_takes_answers,
    .invalidation_timed_out = vtd_invalidation_timed_out,
    .unexpected_answer = vtd_unexpected_answer,
    .step = vtd_step,
    .resume = resume,
    .reset = reset,
    .describe = vtd_describe,
    .invalidation_state = vtd_invalidation_state,
    .has_field = has_field,
    .register_offset = register_offset,
    .destroy = destroy,
};

static void derive(struct iemu_vtd *v)
{
    unsigned widths = (unsigned)VTD_GET(CAP, SAGAW, v->cap);
    uint64_t sizes = VTD_GET(CAP, SSLPS, v->cap);
    uint64_t common = (v->address_reserved & 0x000ffffffffff000ull) | 1ull << 62;
    uint64_t snoop = VTD_GET(ECAP, SC, v->ecap) ? 0 : 1ull << 11;

    v->domain_mask = (uint32_t)iemu_low_mask(4 + 2 * (unsigned)VTD_GET(CAP, ND, v->cap));
    v->guest_width = (uint8_t)(VTD_GET(CAP, MGAW, v->cap) + 1);
    for (unsigned levels = 3; levels <= 5; levels++) {
        if (widths >> (levels - 2) & 1)
            v->largest_levels = (uint8_t)levels;
    }
    v->recorded_address =
        (v->largest_levels ? iemu_low_mask(12 + 9u * v->largest_levels) : UINT64_MAX) & ~0xfffull;
    /* Second-stage masks (4.8): table entries, then leaves by level. */
    v->leaf_reserved[0] = common | 1ull << 11 | 1ull << 7;
    v->leaf_reserved[1] = common | snoop;
    v->leaf_reserved[2] = common | snoop | 0x1ff000 | (sizes & 1 ? 0 : 1ull << 7);
    v->leaf_reserved[3] = common | snoop | 0x3ffff000 | (sizes & 2 ? 0 : 1ull << 7);
}

static int place_registers(struct iemu_vtd *v)
{
    struct iemu_regfile *regs = &v->unit.regs;
    int error = IEMU_OK;

    for (uint16_t i = 0; !error && i < VTD_REGISTERS; i++)
        error = iemu_regfile_place(regs, &registers[i], i, register_offset(&v->unit, i),
                                   register_count(v, i));
    for (size_t i = 0; !error && i < IEMU_COUNT(fields); i++) {
        if (has_field(&v->unit, i))
            iemu_regfile_field(regs, &registers[fields[i].reg], &fields[i],
                               register_offset(&v->unit, fields[i].reg),
                               register_count(v, fields[i].reg));
    }
    if (error)
        return error;
    /* What the configuration says, and the granularity of the protected regions. */
    regs->word[VTD_VER_AT / 4].reset = (uint32_t)v->major << 4 | v->minor;
    regs->word[VTD_CAP_AT / 4].reset = (uint32_t)v->cap;
    regs->word[VTD_CAP_AT / 4 + 1].reset = (uint32_t)(v->cap >> 32);
    regs->word[VTD_ECAP_AT / 4].reset = (uint32_t)v->ecap;
    regs->word[VTD_ECAP_AT / 4 + 1].reset = (uint32_t)(v->ecap >> 32);
    regs->word[VTD_PLMBASE_AT / 4].writable &= ~(uint32_t)iemu_low_mask(v->protected_shift);
    regs->word[VTD_PLMLIMIT_AT / 4].writable &= ~(uint32_t)iemu_low_mask(v->protected_shift);
    regs->word[VTD_PHMBASE_AT / 4].writable &= ~(uint32_t)iemu_low_mask(v->protected_shift);
    regs->word[VTD_PHMLIMIT_AT / 4].writable &= ~(uint32_t)iemu_low_mask(v->protected_shift);
    return IEMU_OK;
}

struct iemu_unit *vtd_create(struct iemu_machine *machine, const struct iemu_vtd_config *config,
                             int *error)
{
    struct iemu_vtd *v;

    *error = IEMU_E_ARGUMENT;
    if (config->major > 15 || config->minor > 15 || config->protected_shift < 12 ||
        config->protected_shift > 32 || VTD_GET(CAP, ND, config->cap) == 7)
        return NULL;
    v = calloc(1, sizeof(*v));
    if (!v) {
        *error = IEMU_E_NO_MEMORY;
        return NULL;
    }
    v->cap = config->cap;
    v->ecap = config->ecap;
    v->major = config->major;
    v->minor = config->minor;
    v->compress_faults = config->compress_faults;
    v->protected_shift = config->protected_shift;
    v->invalidation_timeout = config->invalidation_timeout;
    v->address_reserved = ~iemu_low_mask(config->unit.host_address_width);
    derive(v);
    *error = iemu_unit_init(&v->unit, machine, &config->unit, &vtd_ops);
    if (*error) {
        free(v);
        return NULL;
    }
    *error = place_registers(v);
    if (*error) {
        iemu_unit_abandon(&v->unit);
        free(v);
        return NULL;
    }
    vtd_invalidation_init(v);
    reset(&v->unit, IEMU_RESET_POWER_ON);
    return &v->unit;
}
