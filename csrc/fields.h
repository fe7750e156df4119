/*
 * What a vendor's registers.def and faults.def are expanded with. A vendor prefixes the enum
 * constants PREFIX_REGISTER_FIELD_LOW and _BITS; the macros below take PREFIX_REGISTER_FIELD.
 */
#ifndef IEMU_FIELDS_H
#define IEMU_FIELDS_H

#include "registers.h"

/* Mask of a field in its own 64 bits of the register; its value in, and its place in, a value. */
#define IEMU_FIELD_MASK(field)       (((2ull << (field##_BITS - 1)) - 1) << (field##_LOW % 64))
#define IEMU_FIELD_GET(field, value) (((value)&IEMU_FIELD_MASK(field)) >> (field##_LOW % 64))
#define IEMU_FIELD_PUT(field, value)                                                               \
    (((uint64_t)(value) << (field##_LOW % 64)) & IEMU_FIELD_MASK(field))

/* Rows of the exported tables (struct iemu_vendor_tables). */
#define IEMU_REGISTER_ROW(name_, base_, offset_, width_, count_, stride_, description_)            \
    {.name = #name_,                                                                               \
     .description = description_,                                                                  \
     .offset = offset_,                                                                            \
     .width = width_,                                                                              \
     .count = count_,                                                                              \
     .stride = stride_,                                                                            \
     .base = IEMU_BASE_##base_},
#define IEMU_FIELD_ROW(reg_, name_, high_, low_, access_, reset_, needs_)                          \
    {.name = #name_,                                                                               \
     .needs = needs_,                                                                              \
     .reg = reg_,                                                                                  \
     .high = high_,                                                                                \
     .low = low_,                                                                                  \
     .access = IEMU_##access_,                                                                     \
     .reset = reset_},
#define IEMU_FAULT_ROW(slug_, code_, name_, qualified_, condition_, section_)                      \
    {.slug = #slug_,                                                                               \
     .name = name_,                                                                                \
     .condition = condition_,                                                                      \
     .section = section_,                                                                          \
     .code = code_,                                                                                \
     .qualified = qualified_},

#define IEMU_COUNT(table) (sizeof(table) / sizeof((table)[0]))

#endif
