#include "../vendor.h"
const struct iemu_vendor_tables amdvi_tables = {0};
struct iemu_unit *amdvi_create(struct iemu_machine *machine, const struct iemu_amdvi_config *config, int *error)
{ (void)machine; (void)config; *error = IEMU_E_ARGUMENT; return 0; }
