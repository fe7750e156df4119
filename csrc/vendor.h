/* What api_unit.c calls of each vendor: how its units are made, and its exported tables. */
#ifndef IEMU_VENDOR_H
#define IEMU_VENDOR_H

#include "iommu_emu.h"

struct iemu_vendor_tables {
    const struct iemu_register_info *registers;
    size_t register_count;
    const struct iemu_field_info *fields;
    size_t field_count;
    const struct iemu_fault_info *faults;
    size_t fault_count;
};

extern const struct iemu_vendor_tables vtd_tables;
extern const struct iemu_vendor_tables amdvi_tables;

/* Both return NULL with *error set, and leave nothing behind then. */
struct iemu_unit *vtd_create(struct iemu_machine *machine, const struct iemu_vtd_config *config,
                             int *error);
struct iemu_unit *amdvi_create(struct iemu_machine *machine,
                               const struct iemu_amdvi_config *config, int *error);

#endif
