/*
 * The journal: what a run was decided by, and what came of it, as records. Recording appends them
 * to a buffer that its owner empties; replaying compares each with the one that is expected, and
 * takes from that what a unit reads in memory that is not there.
 */
#ifndef IEMU_JOURNAL_H
#define IEMU_JOURNAL_H

#include "clock.h"

struct iemu_journal {
    struct iemu_clock *clock;
    uint64_t time;              /* as the records so far tell it */
    struct iemu_record *buffer; /* NULL: replaying */
    uint32_t ended;             /* enum iemu_journal_end: nothing is added any more */
    /* Recording: */
    size_t capacity;
    size_t count; /* in the buffer */
    size_t call;  /* where the records of the present call begin */
    uint64_t taken;
    uint64_t limit;
    uint64_t until;
    /* Replaying: */
    const struct iemu_record *expected;
    size_t expected_count;
    size_t position;
    bool diverged;
    struct iemu_record got;
};

/* A call of the API begins: every record up to the next one is an effect of it. */
void iemu_journal_input(struct iemu_journal *journal, struct iemu_record record);
void iemu_journal_put(struct iemu_journal *journal, struct iemu_record record);
/* Runs the clock. An advance that only moves it is told with the next input, if ever. */
void iemu_journal_run_to(struct iemu_journal *journal, uint64_t time);
void iemu_journal_store(struct iemu_journal *journal, uint64_t address, const void *data,
                        size_t length);
/* These two are inputs in the middle of a call: a replay fills them in. */
void iemu_journal_fetch(struct iemu_journal *journal, uint64_t address, uint64_t *value,
                        unsigned words);
void iemu_journal_payload(struct iemu_journal *journal, uint8_t *data, size_t length);
void iemu_journal_translated(struct iemu_journal *journal, const struct iemu_request *request,
                             const struct iemu_result *result);
void iemu_journal_message(struct iemu_journal *journal, const struct iemu_message *message);

/* configuration.c: a unit's configuration as records, and back. */
union iemu_any_config {
    struct iemu_unit_config unit; /* both vendors begin with it */
    struct iemu_vtd_config vtd;
    struct iemu_amdvi_config amdvi;
};
/* The input of a unit's creation. */
void iemu_journal_unit(struct iemu_journal *journal, uint32_t vendor,
                       const union iemu_any_config *config);
/* Sets one value; false: there is none like it, or it does not fit. */
bool iemu_config_set(union iemu_any_config *config, uint32_t vendor,
                     const struct iemu_record *record);

#endif
