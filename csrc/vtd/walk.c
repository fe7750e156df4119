#include "walk.h"

uint32_t vtd_reserved_bit(const struct iemu_vtd *v, uint64_t entry, unsigned level, bool leaf)
{
    uint64_t sizes = VTD_GET(CAP, SSLPS, v->cap);

    if (entry & v->address_reserved & ENTRY_ADDRESS)
        return VTD_DIAG_LSS_2_ADDRESS;
    /* SSLPS bit 0: 2 MiB at level 2; bit 1: 1 GiB at level 3; above that PS is reserved. */
    if (level > 1 && (entry & ENTRY_PS) && (level > 3 || !(sizes >> (level - 2) & 1)))
        return VTD_DIAG_LSS_2_PAGE_SIZE;
    if ((entry & ENTRY_SNP) && (!leaf || !VTD_GET(ECAP, SC, v->ecap)))
        return VTD_DIAG_LSS_2_SNOOP;
    if (entry & ENTRY_IW)
        return VTD_DIAG_LSS_2_IW;
    return VTD_DIAG_LSS_2_ALIGNMENT;
}
