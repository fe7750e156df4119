/* What a unit tells of its caches, the same for both vendors. */
#ifndef IEMU_INTROSPECTION_H
#define IEMU_INTROSPECTION_H

#include "unit.h"

struct iemu_statistics {
    uint64_t memory_reads; /* table entries fetched */
    uint64_t faults_recorded;
    uint64_t faults_lost; /* no room in the records or the log */
    uint64_t descriptors; /* descriptors or commands done */
};

/* struct iemu_unit_ops.counters. */
size_t iemu_count(const struct iemu_unit *unit, const struct iemu_statistics *statistics,
                  struct iemu_counter *counters, size_t count);

/* struct iemu_unit_ops.describe, but for interrupt entries, whose keys are the vendor's. */
void iemu_describe_line(const struct iemu_unit *unit, uint32_t cache, const struct iemu_tag *tag,
                        const struct iemu_line *line, struct iemu_cache_entry *entry);

#endif
