/* A unit's configuration as records: one a value that is not 0. */
#include <string.h>

#include "fields.h"
#include "journal.h"

#define BOTH 2u /* vendors */

struct member {
    uint8_t vendor;
    uint8_t value; /* enum iemu_config_value */
    uint8_t index;
    uint8_t bits;
    uint16_t at; /* in union iemu_any_config */
};

#define ROW(vendor, value, index, name)                                                        \
    {vendor, IEMU_CONFIG_##value, index,                                                       \
     8 * sizeof(((union iemu_any_config *)0)->name), offsetof(union iemu_any_config, name)}
#define FLAG(vendor, value, name)                                                              \
    {vendor, IEMU_CONFIG_##value, 0, 1, offsetof(union iemu_any_config, name)}
#define GEOMETRY(cache)                                                                        \
    ROW(BOTH, SETS, cache, unit.geometry[cache].sets),                                         \
        ROW(BOTH, WAYS, cache, unit.geometry[cache].ways),                                     \
        ROW(BOTH, REPLACEMENT, cache, unit.geometry[cache].replacement),                       \
        ROW(BOTH, SEED, cache, unit.geometry[cache].seed)

static const struct member members[] = {
    ROW(BOTH, BASE, 0, unit.base),
    ROW(BOTH, WINDOW, 0, unit.window),
    ROW(BOTH, HOST_ADDRESS_WIDTH, 0, unit.host_address_width),
    ROW(BOTH, IOTLB_LOOKUP, 0, unit.iotlb_lookup),
    ROW(BOTH, FETCH_GRANULE, 0, unit.fetch_granule),
    GEOMETRY(IEMU_CACHE_IOTLB),
    GEOMETRY(IEMU_CACHE_CONTEXT),
    GEOMETRY(IEMU_CACHE_PAGING),
    GEOMETRY(IEMU_CACHE_INTERRUPT),
    ROW(BOTH, TIMING_COMMAND, 0, unit.timing.command),
    ROW(BOTH, TIMING_INVALIDATION, 0, unit.timing.invalidation),
    ROW(BOTH, TIMING_WAIT, 0, unit.timing.wait),
    FLAG(BOTH, TIMING_MANUAL, unit.timing.manual),
    ROW(IEMU_VTD, CAP, 0, vtd.cap),
    ROW(IEMU_VTD, ECAP, 0, vtd.ecap),
    ROW(IEMU_VTD, MAJOR, 0, vtd.major),
    ROW(IEMU_VTD, MINOR, 0, vtd.minor),
    FLAG(IEMU_VTD, COMPRESS_FAULTS, vtd.compress_faults),
    ROW(IEMU_VTD, PROTECTED_SHIFT, 0, vtd.protected_shift),
    ROW(IEMU_AMDVI, EFR, 0, amdvi.efr),
    ROW(IEMU_AMDVI, DEVICE_ID, 0, amdvi.device_id),
    FLAG(IEMU_AMDVI, NP_CACHE, amdvi.np_cache),
    ROW(IEMU_VTD, INVALIDATION_TIMEOUT, 0, vtd.invalidation_timeout),
    FLAG(IEMU_AMDVI, IOTLB_SUP, amdvi.iotlb_sup),
};

void iemu_journal_unit(struct iemu_journal *journal, uint32_t vendor,
                       const union iemu_any_config *config)
{
    bool begun = false;

    for (size_t i = 0; i < IEMU_COUNT(members); i++) {
        const struct member *member = &members[i];
        struct iemu_record record = {
            .kind = IEMU_RECORD_CONFIG, .id = member->value, .number = member->index};

        if (member->vendor != BOTH && member->vendor != vendor)
            continue;
        /* Little endian, so a short value fills the low bytes. */
        memcpy(record.value, (const uint8_t *)config + member->at, (member->bits + 7) / 8);
        if (!record.value[0])
            continue;
        (begun ? iemu_journal_put : iemu_journal_input)(journal, record);
        begun = true;
    }
    (begun ? iemu_journal_put : iemu_journal_input)(
        journal, (struct iemu_record){.kind = IEMU_RECORD_UNIT, .size = (uint8_t)vendor});
}

bool iemu_config_set(union iemu_any_config *config, uint32_t vendor,
                     const struct iemu_record *record)
{
    for (size_t i = 0; i < IEMU_COUNT(members); i++) {
        const struct member *member = &members[i];

        if (member->value != record->id || member->index != record->number ||
            (member->vendor != BOTH && member->vendor != vendor))
            continue;
        if (member->bits < 64 && record->value[0] >> member->bits)
            return false;
        memcpy((uint8_t *)config + member->at, record->value, (member->bits + 7) / 8);
        return true;
    }
    return false;
}
