/*
 * The register file of a unit: 32-bit words with access masks that are composed from a vendor's
 * registers.def for the capabilities that this unit reports. What a write does beyond storing
 * bits is the vendor's, by register index.
 */
#ifndef IEMU_REGISTERS_H
#define IEMU_REGISTERS_H

#include "iommu_emu.h"

enum iemu_register_base {
    IEMU_BASE_FIXED = 0,
    IEMU_BASE_IRO = 1, /* VT-d: 16 * ECAP.IRO */
    IEMU_BASE_FRO = 2, /* VT-d: 16 * CAP.FRO */
};

#define IEMU_NO_REGISTER 0xffffu

struct iemu_word {
    uint32_t value;
    uint32_t writable;  /* RW bits */
    uint32_t clearable; /* RW1C and RW1CS bits */
    uint32_t settable;  /* RW1S bits */
    uint32_t lockable;  /* RW bits that are read-only while locked */
    uint32_t hidden;    /* WO bits: read 0 */
    uint32_t sticky;    /* bits that a warm reset leaves alone */
    uint32_t reset;
    uint16_t reg;       /* index in the register table, or IEMU_NO_REGISTER */
    uint16_t part;      /* which dword of the register, counted over an array */
};

struct iemu_regfile {
    struct iemu_word *word;
    uint32_t words;
    bool locked;
};

/* Adds a register of the vendor's table; `count` elements of `stride` bytes. */
int iemu_regfile_init(struct iemu_regfile *file, uint32_t bytes);
void iemu_regfile_free(struct iemu_regfile *file);
/* IEMU_E_OVERLAP if any dword is taken, IEMU_E_ARGUMENT if it does not fit the window. */
int iemu_regfile_place(struct iemu_regfile *file, const struct iemu_register_info *info,
                       uint16_t reg, uint32_t offset, uint32_t count);
void iemu_regfile_field(struct iemu_regfile *file, const struct iemu_register_info *info,
                        const struct iemu_field_info *field, uint32_t offset, uint32_t count);
void iemu_regfile_reset(struct iemu_regfile *file, bool power_on);

static inline uint32_t iemu_reg32(const struct iemu_regfile *file, uint32_t offset)
{
    return file->word[offset / 4].value;
}

static inline uint64_t iemu_reg64(const struct iemu_regfile *file, uint32_t offset)
{
    return file->word[offset / 4].value | (uint64_t)file->word[offset / 4 + 1].value << 32;
}

static inline void iemu_reg32_set(struct iemu_regfile *file, uint32_t offset, uint32_t value)
{
    file->word[offset / 4].value = value;
}

static inline void iemu_reg64_set(struct iemu_regfile *file, uint32_t offset, uint64_t value)
{
    file->word[offset / 4].value = (uint32_t)value;
    file->word[offset / 4 + 1].value = (uint32_t)(value >> 32);
}

/* Stores what software may store in one dword; returns the dword, for its side effect. */
const struct iemu_word *iemu_regfile_write(struct iemu_regfile *file, uint32_t offset,
                                           uint32_t value);
static inline uint32_t iemu_regfile_read(const struct iemu_regfile *file, uint32_t offset)
{
    const struct iemu_word *word = &file->word[offset / 4];

    return word->value & ~word->hidden;
}

#endif
