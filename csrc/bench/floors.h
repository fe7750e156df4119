/* The floors, for the loops beside them. Every function is a call, as in the core. */
#ifndef IEMU_FLOORS_H
#define IEMU_FLOORS_H

#include "bench.h"

/* Probe; on a miss walk and fill; on a fault write the record. */
void iemu_floor_translate(struct iemu_floor *floor, const struct iemu_request *request,
                          struct iemu_result *result);
/* Translate and copy; 0, or 1 for a fault. */
int iemu_floor_dma_read(struct iemu_floor *floor, const struct iemu_transfer *transfer,
                        uint16_t requester, void *data);
/* Page-selective invalidation, or wait, by the descriptor at a physical address. */
void iemu_floor_invalidate(struct iemu_floor *floor, uint64_t descriptor, uint16_t requester);
void iemu_floor_wait(struct iemu_floor *floor, uint64_t descriptor);
void iemu_floor_clear_record(struct iemu_floor *floor);
uint32_t iemu_floor_mmio_read(struct iemu_floor *floor, uint32_t offset);

#endif
