/* The port's side of dma.c, for api_dma.c. */
#ifndef IEMU_DMA_H
#define IEMU_DMA_H

#include "machine.h"

struct iemu_port *iemu_dma_port_create(struct iemu_machine *machine, uint16_t segment,
                                       uint16_t requester);
void iemu_dma_port_remove(struct iemu_port *port);
void iemu_dma_port_destroy(struct iemu_port *port);
void iemu_dma_port_latency(struct iemu_port *port, uint64_t fabric, uint64_t memory);
void iemu_dma_port_requester(struct iemu_port *port, uint16_t requester);
void iemu_dma_port_completion(const struct iemu_port *port, struct iemu_completion *completion);
void iemu_dma_port_in_flight(const struct iemu_port *port, uint32_t *fabric,
                             uint32_t *translated);
int iemu_dma_port_add_rule(struct iemu_port *port, const struct iemu_port_rule *rule);
void iemu_dma_port_clear_rules(struct iemu_port *port);
struct iemu_machine *iemu_port_machine(struct iemu_port *port);
uint32_t iemu_port_number(const struct iemu_port *port);
/* Returns enum iemu_status, or IEMU_E_ARGUMENT for a transfer that no device could send. */
int iemu_dma_transfer(struct iemu_port *port, const struct iemu_transfer *transfer, void *data);
int iemu_dma_collect(struct iemu_port *port, uint32_t token, uint8_t *data,
                     struct iemu_completion *completion);

#endif
