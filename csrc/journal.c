#include "journal.h"

#include <string.h>

static void end(struct iemu_journal *journal, uint32_t reason)
{
    journal->ended = reason;
    journal->count = journal->call; /* nothing of a call that is not whole */
}

static void compare(struct iemu_journal *journal, const struct iemu_record *record)
{
    if (journal->position < journal->expected_count &&
        !memcmp(&journal->expected[journal->position], record, sizeof(*record))) {
        journal->position++;
        return;
    }
    journal->diverged = true;
    journal->got = *record;
}

static void append(struct iemu_journal *journal, const struct iemu_record *record)
{
    if (!journal->buffer) {
        if (!journal->diverged)
            compare(journal, record);
    } else if (journal->limit && journal->taken + journal->count >= journal->limit) {
        end(journal, IEMU_JOURNAL_LIMIT);
    } else if (journal->count == journal->capacity) {
        end(journal, IEMU_JOURNAL_FULL);
    } else {
        journal->buffer[journal->count++] = *record;
    }
}

void iemu_journal_put(struct iemu_journal *journal, struct iemu_record record)
{
    if (journal->ended)
        return;
    if (journal->clock->now != journal->time) {
        journal->time = journal->clock->now;
        append(journal, &(struct iemu_record){.kind = IEMU_RECORD_TIME, .value = {journal->time}});
    }
    if (!journal->ended)
        append(journal, &record);
}

void iemu_journal_input(struct iemu_journal *journal, struct iemu_record record)
{
    journal->call = journal->count;
    if (journal->until && journal->clock->now >= journal->until && !journal->ended)
        end(journal, IEMU_JOURNAL_TIME);
    if (journal->ended)
        return;
    if (journal->clock->now != journal->time) {
        journal->time = journal->clock->now;
        append(journal,
               &(struct iemu_record){.kind = IEMU_RECORD_ADVANCE, .value = {journal->time}});
        journal->call = journal->count;
    }
    iemu_journal_put(journal, record);
}

void iemu_journal_run_to(struct iemu_journal *journal, uint64_t time)
{
    struct iemu_clock *clock = journal->clock;

    if (journal->buffer && !(clock->count && clock->heap[0]->due <= time)) {
        iemu_clock_run_to(clock, time);
        return;
    }
    iemu_journal_input(journal, (struct iemu_record){.kind = IEMU_RECORD_ADVANCE, .value = {time}});
    iemu_clock_run_to(clock, time);
    journal->time = clock->now;
}

void iemu_journal_store(struct iemu_journal *journal, uint64_t address, const void *data,
                        size_t length)
{
    struct iemu_record record = {
        .kind = IEMU_RECORD_STORE,
        .size = (uint8_t)length,
        .value = {address},
    };

    memcpy(&record.value[1], data, length);
    iemu_journal_put(journal, record);
}

/* The next record, if a replay expects one of this kind and size now. */
static const struct iemu_record *expected(const struct iemu_journal *journal, uint8_t kind,
                                          uint8_t size)
{
    const struct iemu_record *record = journal->expected + journal->position;

    if (journal->buffer || journal->diverged || journal->position == journal->expected_count)
        return NULL;
    if (record->kind == IEMU_RECORD_TIME && journal->clock->now != journal->time &&
        journal->position + 1 < journal->expected_count)
        record++;
    return record->kind == kind && record->size == size ? record : NULL;
}

void iemu_journal_fetch(struct iemu_journal *journal, uint64_t address, uint64_t *value,
                        unsigned words)
{
    struct iemu_record record = {
        .kind = IEMU_RECORD_FETCH,
        .size = (uint8_t)words,
        .value = {address},
    };
    const struct iemu_record *next = expected(journal, record.kind, record.size);

    if (next)
        memcpy(value, &next->value[1], words * sizeof(*value));
    else if (!journal->buffer)
        memset(value, 0, words * sizeof(*value));
    memcpy(&record.value[1], value, words * sizeof(*value));
    iemu_journal_put(journal, record);
}

void iemu_journal_payload(struct iemu_journal *journal, uint8_t *data, size_t length)
{
    for (size_t at = 0; at < length;) {
        struct iemu_record record = {.kind = IEMU_RECORD_PAYLOAD};
        size_t left = length - at;
        const struct iemu_record *next;

        record.size = (uint8_t)(left < sizeof(record.value) ? left : sizeof(record.value));
        next = expected(journal, record.kind, record.size);
        if (next)
            memcpy(data + at, next->value, record.size);
        memcpy(record.value, data + at, record.size);
        iemu_journal_put(journal, record);
        at += record.size;
    }
}

void iemu_journal_translated(struct iemu_journal *journal, const struct iemu_request *request,
                             const struct iemu_result *result)
{
    iemu_journal_put(
        journal, (struct iemu_record){
                     .kind = IEMU_RECORD_TRANSLATED,
                     .size = result->outcome,
                     .id = request->requester,
                     .number = result->domain,
                     .value = {request->address, result->address, result->diagnostic, result->fault,
                               result->page_shift | result->permissions << 8 |
                                   result->attributes << 16 | (uint64_t)result->recorded << 24},
                 });
}

void iemu_journal_message(struct iemu_journal *journal, const struct iemu_message *message)
{
    struct iemu_record record = {
        .kind = IEMU_RECORD_MESSAGE,
        .size = (uint8_t)message->kind,
        .id = message->requester,
        .number = message->owner,
        .value = {message->address, 0, message->size, message->segment, message->token},
    };

    memcpy(&record.value[1], message->data, sizeof(record.value[1]));
    iemu_journal_put(journal, record);
}
