/* What a unit tells of its caches, the same for both vendors. */
#ifndef IEMU_INTROSPECTION_H
#define IEMU_INTROSPECTION_H

#include "unit.h"

/* Copies up to `count` counters; returns how many there are. */
size_t iemu_count(const struct iemu_unit *unit, struct iemu_counter *counters, size_t count);

/* struct iemu_unit_ops.describe, but for interrupt entries, whose keys are the vendor's. */
void iemu_describe_line(const struct iemu_unit *unit, uint32_t cache, const struct iemu_tag *tag,
                        const struct iemu_line *line, struct iemu_cache_entry *entry);

#endif
