/* Plays the inputs of a journal again; journal.c compares what comes of them. */
#include <stdlib.h>
#include <string.h>

#include "in_flight.h"

#define MAX_PORTS 65536u
#define MAX_LINES (1u << 22)          /* of all caches of all units */
#define SCRATCH   ((16u << 20) + 64u) /* a transfer's data, which means nothing here */

struct player {
    struct iemu_machine *machine;
    struct iemu_journal journal;
    struct iemu_port **port;
    uint32_t ports;
    uint64_t lines;
    uint8_t *scratch;
    struct iemu_message *messages;
};

static struct iemu_port *port_of(const struct player *player, const struct iemu_record *record)
{
    return record->number < player->ports ? player->port[record->number] : NULL;
}

/* The values of a configuration up to their unit. */
static bool make_unit(struct player *player)
{
    const struct iemu_journal *journal = &player->journal;
    const struct iemu_record *first = journal->expected + journal->position;
    const struct iemu_record *end = journal->expected + journal->expected_count, *unit = first;
    union iemu_any_config config;
    int error;

    while (unit < end && unit->kind == IEMU_RECORD_CONFIG)
        unit++;
    if (unit == end || unit->kind != IEMU_RECORD_UNIT || unit->size > IEMU_AMDVI)
        return false;
    memset(&config, 0, sizeof(config));
    for (const struct iemu_record *record = first; record < unit; record++) {
        if (!iemu_config_set(&config, unit->size, record))
            return false;
    }
    for (unsigned i = 0; i < IEMU_CACHES; i++)
        player->lines += (uint64_t)config.unit.geometry[i].sets * config.unit.geometry[i].ways;
    if (player->lines > MAX_LINES)
        return false;
    if (unit->size == IEMU_VTD)
        iemu_vtd_create(player->machine, &config.vtd, &error);
    else
        iemu_amdvi_create(player->machine, &config.amdvi, &error);
    return true;
}

static bool make_port(struct player *player, const struct iemu_record *record)
{
    int error;

    if (player->ports == MAX_PORTS || record->value[0] > UINT16_MAX)
        return false;
    player->port[player->ports++] =
        iemu_port_create(player->machine, (uint16_t)record->value[0], record->id, &error);
    return true;
}

static bool build(struct player *player, const struct iemu_record *record)
{
    struct iemu_machine *machine = player->machine;
    const uint64_t *value = record->value;
    struct iemu_unit *unit = NULL;

    switch (record->kind) {
    case IEMU_RECORD_RAM:
        iemu_memory_map_hollow(machine, value[0], value[1]);
        return true;
    case IEMU_RECORD_BAR:
        iemu_memory_map_bar(machine, value[0], value[1], record->number);
        return true;
    case IEMU_RECORD_UNMAP:
        iemu_memory_unmap(machine, value[0]);
        return true;
    case IEMU_RECORD_CONFIG:
    case IEMU_RECORD_UNIT:
        return make_unit(player);
    case IEMU_RECORD_ROUTE:
        if (record->size)
            unit = iemu_machine_unit(machine, record->number);
        if ((record->size && !unit) || (value[0] | value[1]) > UINT16_MAX)
            return false;
        iemu_route(machine, record->id, (uint16_t)value[0], (uint16_t)value[1], unit);
        return true;
    case IEMU_RECORD_PORT:
        return make_port(player, record);
    default:
        return false;
    }
}

static void transfer(struct player *player, struct iemu_port *port,
                     const struct iemu_record *record)
{
    const uint64_t *value = record->value;
    const struct iemu_transfer transfer = {
        .address = value[0],
        .length = (uint32_t)value[1],
        .pasid = (uint32_t)value[2],
        .access = record->size,
        .at = (uint8_t)value[4],
        .atomic = (uint8_t)(value[4] >> 8),
        .posted = (uint8_t)(value[4] >> 16),
        .flags = (uint32_t)value[3],
    };
    struct iemu_completion completion;

    iemu_dma(port, &transfer, player->scratch, &completion);
}

static void add_rule(struct iemu_port *port, const struct iemu_record *record)
{
    const struct iemu_port_rule rule = {
        .first = record->value[0],
        .last = record->value[1],
        .first_requester = (uint16_t)record->value[2],
        .last_requester = (uint16_t)record->value[3],
        .address_types = (uint8_t)record->id,
        .verdict = record->size,
    };

    iemu_port_add_rule(port, &rule);
}

static bool add_device_tlb(struct player *player, struct iemu_port *port,
                           const struct iemu_record *record)
{
    const uint64_t *value = record->value;
    const struct iemu_ats_config config = {
        .geometry = {.sets = (uint32_t)value[2],
                     .ways = (uint32_t)(value[2] >> 32),
                     .replacement = (uint32_t)value[3],
                     .seed = (uint32_t)(value[3] >> 32)},
        .delay = value[0],
        .answer = record->size,
        .owner = (uint32_t)value[1],
    };

    player->lines += (uint64_t)config.geometry.sets * config.geometry.ways;
    if (player->lines > MAX_LINES)
        return false;
    iemu_ats_create(port, &config);
    return true;
}

static bool use_port(struct player *player, const struct iemu_record *record)
{
    struct iemu_port *port = port_of(player, record);
    struct iemu_completion completion;

    if (!port)
        return false;
    switch (record->kind) {
    case IEMU_RECORD_PORT_REMOVE:
        iemu_port_remove(port);
        return true;
    case IEMU_RECORD_PORT_DESTROY:
        iemu_port_destroy(port);
        player->port[record->number] = NULL;
        return true;
    case IEMU_RECORD_LATENCY:
        iemu_port_set_latency(port, record->value[0], record->value[1]);
        return true;
    case IEMU_RECORD_REQUESTER:
        iemu_port_set_requester(port, record->id);
        return true;
    case IEMU_RECORD_ATS:
        return add_device_tlb(player, port, record);
    case IEMU_RECORD_ATS_ENABLE:
        iemu_ats_enable(port, record->size);
        return true;
    case IEMU_RECORD_ATS_ANSWER:
        iemu_ats_set_answer(port, record->size, record->value[0]);
        return true;
    case IEMU_RECORD_ATS_DROP:
        iemu_ats_drop(port, record->value[0], record->value[1]);
        return true;
    case IEMU_RECORD_ATS_COMPLETE:
        iemu_ats_complete(port, (uint32_t)record->value[0], record->size);
        return true;
    case IEMU_RECORD_RULE:
        add_rule(port, record);
        return true;
    case IEMU_RECORD_NO_RULES:
        iemu_port_clear_rules(port);
        return true;
    case IEMU_RECORD_DMA:
        transfer(player, port, record);
        return true;
    case IEMU_RECORD_DMA_TAKE:
        iemu_dma_take(port, (uint32_t)record->value[0], player->scratch, &completion);
        return true;
    default:
        return false;
    }
}

static bool use_unit(const struct player *player, const struct iemu_record *record)
{
    struct iemu_unit *unit = iemu_machine_unit(player->machine, record->number);
    const uint64_t *value = record->value;
    struct iemu_result result;

    if (!unit)
        return false;
    switch (record->kind) {
    case IEMU_RECORD_MMIO_READ:
        iemu_mmio_read(unit, value[0], record->size);
        return true;
    case IEMU_RECORD_MMIO_WRITE:
        iemu_mmio_write(unit, value[0], record->size, value[1]);
        return true;
    case IEMU_RECORD_TRANSLATE:
        iemu_translate(unit,
                       &(struct iemu_request){.address = value[0],
                                              .length = (uint32_t)value[1],
                                              .pasid = (uint32_t)value[2],
                                              .requester = record->id,
                                              .access = record->size,
                                              .at = (uint8_t)value[4],
                                              .flags = (uint32_t)value[3]},
                       &result);
        return true;
    case IEMU_RECORD_RESET:
        iemu_unit_reset(unit, record->size);
        return true;
    case IEMU_RECORD_STEP:
        iemu_unit_step(unit);
        return true;
    case IEMU_RECORD_TIMING:
        iemu_unit_set_timing(unit, &(struct iemu_timing){.command = value[0],
                                                         .invalidation = value[1],
                                                         .wait = value[2],
                                                         .manual = record->size});
        return true;
    default:
        return false;
    }
}

/* False: no input, or none that can be here. */
static bool play(struct player *player, const struct iemu_record *record)
{
    struct iemu_machine *machine = player->machine;

    switch (record->kind) {
    case IEMU_RECORD_ADVANCE:
        iemu_clock_advance_to(machine, record->value[0]);
        return true;
    case IEMU_RECORD_TAKE:
        if (record->number > machine->outbox.capacity)
            return false;
        iemu_outbox_take(machine, player->messages, record->number);
        return true;
    case IEMU_RECORD_ANSWER:
        iemu_outbox_answer(machine, record->number, record->size ? player->scratch : NULL,
                           record->value[0]);
        return true;
    case IEMU_RECORD_PORT_REMOVE:
    case IEMU_RECORD_PORT_DESTROY:
    case IEMU_RECORD_LATENCY:
    case IEMU_RECORD_REQUESTER:
    case IEMU_RECORD_ATS:
    case IEMU_RECORD_ATS_ENABLE:
    case IEMU_RECORD_ATS_ANSWER:
    case IEMU_RECORD_ATS_DROP:
    case IEMU_RECORD_ATS_COMPLETE:
    case IEMU_RECORD_RULE:
    case IEMU_RECORD_NO_RULES:
    case IEMU_RECORD_DMA:
    case IEMU_RECORD_DMA_TAKE:
        return use_port(player, record);
    case IEMU_RECORD_MMIO_READ:
    case IEMU_RECORD_MMIO_WRITE:
    case IEMU_RECORD_TRANSLATE:
    case IEMU_RECORD_RESET:
    case IEMU_RECORD_STEP:
    case IEMU_RECORD_TIMING:
        return use_unit(player, record);
    default:
        return build(player, record);
    }
}

static uint32_t play_all(struct player *player)
{
    struct iemu_journal *journal = &player->journal;

    while (!journal->diverged && journal->position < journal->expected_count) {
        size_t before = journal->position;
        const struct iemu_record *record = &journal->expected[before];

        /* An effect that is expected where a call is over did not come. */
        if (record->kind >= IEMU_RECORD_TIME)
            return IEMU_REPLAY_DIVERGED;
        if (!play(player, record))
            return IEMU_REPLAY_MALFORMED;
        if (journal->position == before && !journal->diverged)
            return IEMU_REPLAY_DIVERGED;
    }
    return journal->diverged ? IEMU_REPLAY_DIVERGED : IEMU_REPLAY_SAME;
}

void iemu_replay(struct iemu_machine *machine, const struct iemu_record *records, size_t count,
                 struct iemu_replay *result)
{
    struct player player = {
        .machine = machine,
        .journal = {.expected = records, .expected_count = count},
        .port = calloc(MAX_PORTS, sizeof(*player.port)),
        .scratch = calloc(1, SCRATCH),
        .messages = calloc(machine->outbox.capacity, sizeof(*player.messages)),
    };
    int error;

    *result = (struct iemu_replay){.outcome = IEMU_REPLAY_NO_MEMORY};
    if (player.port && player.scratch && player.messages) {
        pthread_mutex_lock(&machine->lock);
        error = iemu_journal_attach(machine, &player.journal);
        pthread_mutex_unlock(&machine->lock);
        result->outcome = error ? IEMU_REPLAY_MALFORMED : play_all(&player);
        pthread_mutex_lock(&machine->lock);
        if (!error)
            iemu_journal_detach(machine);
        pthread_mutex_unlock(&machine->lock);
        result->position = player.journal.position;
        result->got = player.journal.got;
    }
    free(player.port);
    free(player.scratch);
    free(player.messages);
}
