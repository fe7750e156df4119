#include "registers.h"

#include <stdlib.h>
#include <string.h>

int iemu_regfile_init(struct iemu_regfile *file, uint32_t bytes)
{
    file->words = bytes / 4;
    file->word = calloc(file->words, sizeof(*file->word));
    if (!file->word)
        return IEMU_E_NO_MEMORY;
    for (uint32_t i = 0; i < file->words; i++)
        file->word[i].reg = IEMU_NO_REGISTER;
    file->locked = false;
    return IEMU_OK;
}

void iemu_regfile_free(struct iemu_regfile *file)
{
    free(file->word);
    file->word = NULL;
}

int iemu_regfile_place(struct iemu_regfile *file, const struct iemu_register_info *info,
                       uint16_t reg, uint32_t offset, uint32_t count)
{
    uint32_t dwords = info->width / 32;

    for (uint32_t element = 0; element < count; element++) {
        uint64_t start = offset + (uint64_t)element * info->stride;

        for (uint32_t part = 0; part < dwords; part++) {
            uint64_t at = start / 4 + part;

            if (at >= file->words)
                return IEMU_E_ARGUMENT;
            if (file->word[at].reg != IEMU_NO_REGISTER)
                return IEMU_E_OVERLAP;
            file->word[at].reg = reg;
            file->word[at].part = (uint16_t)(element * dwords + part);
        }
    }
    return IEMU_OK;
}

/* Bits [low, high] of a register that fall into its dword `part`. */
static uint32_t bits_in(const struct iemu_field_info *field, uint32_t part)
{
    uint32_t mask = 0;

    for (uint32_t bit = field->low; bit <= field->high; bit++) {
        if (bit / 32 == part)
            mask |= 1u << bit % 32;
    }
    return mask;
}

static uint32_t reset_in(const struct iemu_field_info *field, uint32_t part)
{
    uint32_t value = 0;

    for (uint32_t bit = field->low; bit <= field->high && bit - field->low < 64; bit++) {
        if (bit / 32 == part && field->reset >> (bit - field->low) & 1)
            value |= 1u << bit % 32;
    }
    return value;
}

void iemu_regfile_field(struct iemu_regfile *file, const struct iemu_register_info *info,
                        const struct iemu_field_info *field, uint32_t offset, uint32_t count)
{
    for (uint32_t element = 0; element < count; element++) {
        for (uint32_t part = field->low / 32; part <= field->high / 32u; part++) {
            struct iemu_word *word = &file->word[(offset + element * info->stride) / 4 + part];
            uint32_t mask = bits_in(field, part);

            word->reset |= reset_in(field, part);
            switch (field->access) {
            case IEMU_RW:
                word->writable |= mask;
                break;
            case IEMU_RWL:
                word->writable |= mask;
                word->lockable |= mask;
                break;
            case IEMU_WO:
                word->writable |= mask;
                word->hidden |= mask;
                break;
            case IEMU_RW1C:
                word->clearable |= mask;
                break;
            case IEMU_RW1CS:
                word->clearable |= mask;
                word->sticky |= mask;
                break;
            case IEMU_ROS:
                word->sticky |= mask;
                break;
            case IEMU_RW1S:
                word->settable |= mask;
                break;
            default: /* RO: changes only by the unit's own hand */
                break;
            }
        }
    }
}

void iemu_regfile_reset(struct iemu_regfile *file, bool power_on)
{
    for (uint32_t i = 0; i < file->words; i++) {
        struct iemu_word *word = &file->word[i];
        uint32_t kept = power_on ? 0 : word->sticky;

        word->value = (word->value & kept) | (word->reset & ~kept);
    }
    file->locked = false;
}

const struct iemu_word *iemu_regfile_write(struct iemu_regfile *file, uint32_t offset,
                                           uint32_t value)
{
    struct iemu_word *word = &file->word[offset / 4];
    uint32_t writable = word->writable & ~(file->locked ? word->lockable : 0);

    word->value = (word->value & ~writable) | (value & writable);
    word->value &= ~(value & word->clearable);
    word->value |= value & word->settable;
    return word;
}
