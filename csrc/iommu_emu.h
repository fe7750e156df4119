/*
 * iommu-emu: the public C API.
 *
 * Concepts, in the order a DMA meets them:
 *   machine   physical memory, virtual time, transactions in flight, the outbox, the units
 *   port      where one PCI function's requests enter the fabric (its requester ID, its ordering,
 *             its device-TLB)
 *   unit      one IOMMU: registers, caches, invalidation machine; VT-d or AMD-Vi
 *   outbox    what the core cannot finish by itself: BAR accesses, interrupt messages
 *   journal   everything that decided a run, to replay it without its guest
 *
 * Every function here takes the machine's lock once; nothing here calls back. Functions that
 * return int return IEMU_OK or a negative enum iemu_error unless said otherwise. A pointer
 * argument is never NULL unless said otherwise. SPDX-License-Identifier: MIT
 */
#ifndef IOMMU_EMU_H
#define IOMMU_EMU_H

#ifndef IEMU_CDEF
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#endif

struct iemu_machine;
struct iemu_region;
struct iemu_port;
struct iemu_unit;

enum iemu_error {
    IEMU_OK = 0,
    IEMU_E_ARGUMENT = -1,  /* a value outside its documented range */
    IEMU_E_NO_MEMORY = -2, /* the host is out of memory */
    IEMU_E_OVERLAP = -3,   /* a region overlaps another one */
    IEMU_E_NOT_RAM = -4,   /* the range is not wholly RAM */
    IEMU_E_FULL = -5,      /* a fixed pool is exhausted */
    IEMU_E_STATE = -6,     /* not possible in the present state */
    IEMU_E_UNSEALED = -7,  /* a shared region's file can still shrink */
};

/* Access kinds of a request; an AtomicOp is both. */
enum iemu_access {
    IEMU_READ = 1,
    IEMU_WRITE = 2,
    IEMU_ATOMIC = 3,
};

/* Address type of a TLP (spec/pci 6). */
enum iemu_at {
    IEMU_UNTRANSLATED = 0,
    IEMU_TRANSLATION_REQUEST = 1,
    IEMU_TRANSLATED = 2,
    IEMU_AT_RESERVED = 3,
};

enum iemu_request_flag {
    IEMU_HAS_PASID = 1,   /* a PASID prefix is present */
    IEMU_PRIVILEGED = 2,  /* PR: privileged mode requested */
    IEMU_EXECUTE = 4,     /* ER: execute requested */
    IEMU_ZERO_LENGTH = 8, /* read of one DWORD with no byte enabled */
    IEMU_NO_SNOOP = 16,   /* NS attribute */
    IEMU_NO_WRITE = 32,   /* NW of a translation request */
    IEMU_PAST_DEVICE_TLB = 64, /* of a transfer: does without the port's device-TLB */
};

/* One request at the IOMMU; never crosses a 4 KiB page (VT-d 5.6 of the fact sheet). */
struct iemu_request {
    uint64_t address;   /* IOVA, or host physical if at is IEMU_TRANSLATED */
    uint32_t length;    /* bytes */
    uint32_t pasid;     /* 20 bits, if IEMU_HAS_PASID */
    uint16_t requester; /* bus 15:8, device 7:3, function 2:0 */
    uint8_t access;     /* enum iemu_access */
    uint8_t at;         /* enum iemu_at */
    uint32_t flags;     /* enum iemu_request_flag */
};

enum iemu_outcome {
    IEMU_MEMORY = 0,      /* goes to iemu_result.address */
    IEMU_INTERRUPT = 1,   /* is an interrupt message: address and data as delivered */
    IEMU_DISCARDED = 2,   /* completes successfully without an access */
    IEMU_UNSUPPORTED = 3, /* Unsupported Request */
    IEMU_ABORTED = 4,     /* Completer Abort */
    IEMU_TRANSLATION = 5, /* a port's translation request: answered, goes nowhere */
    IEMU_NO_TRANSLATION = 6, /* a device-TLB got no translation that allows the access */
};

struct iemu_result {
    uint64_t address;    /* host physical address */
    uint32_t diagnostic; /* row of the vendor's fault table; 0: no fault */
    uint8_t outcome;     /* enum iemu_outcome */
    uint8_t page_shift;  /* log2 of the bytes that share this translation */
    uint8_t permissions; /* of enum iemu_access, effective over the whole walk */
    uint8_t attributes;  /* enum iemu_attribute */
    uint32_t domain;     /* domain ID the translation is tagged with */
    uint8_t fault;       /* architectural code; 0: none */
    uint8_t recorded;    /* the fault reached a fault record or the event log */
    uint8_t reserved[2];
};

enum iemu_attribute {
    IEMU_SNOOP = 1,        /* snooping forced by the leaf */
    IEMU_UNTRANSLATED_PASS = 2, /* passed with output = input */
    IEMU_UNTRANSLATED_ONLY = 4, /* U of a translation: to be used by untranslated requests */
    IEMU_NON_SNOOPED = 8,       /* N of a translation, as the vendor defines it */
    IEMU_PAST_IOMMU = 16,       /* decided in the fabric: no unit has seen the request */
};

/* ---- physical memory ------------------------------------------------------------------- */

/*
 * Creates RAM of `size` bytes (page multiple, at least one page) between guard pages. `fd` < 0:
 * private zeroed memory; else the file is mapped shared from `offset`, and must be sealed against
 * shrinking. The handle is one reference.
 * Returns NULL with *error set.
 */
struct iemu_region *iemu_region_create(uint64_t size, int fd, uint64_t offset, int *error);
/* Drops a reference; the memory is unmapped with the last one. */
void iemu_region_release(struct iemu_region *region);
/* Host address of the first byte; valid while a reference is held. */
void *iemu_region_host(struct iemu_region *region);

/* Places RAM at `base` (page aligned); the machine takes a reference of its own. */
int iemu_memory_map(struct iemu_machine *machine, uint64_t base, struct iemu_region *region);
/*
 * Places RAM without contents: it has its extent, what is written to it is lost, and what is read
 * from it means nothing. For replays, where the records say what a unit read.
 */
int iemu_memory_map_hollow(struct iemu_machine *machine, uint64_t base, uint64_t size);
/* Places a window of a function's BAR at `base`; accesses go to the outbox with `owner`. */
int iemu_memory_map_bar(struct iemu_machine *machine, uint64_t base, uint64_t size,
                        uint32_t owner);
/* Removes the RAM or window that starts at `base`; IEMU_E_ARGUMENT if none does. */
int iemu_memory_unmap(struct iemu_machine *machine, uint64_t base);
/* CPU-side access to RAM; all or nothing. IEMU_E_NOT_RAM if any byte is not (or hollow) RAM. */
int iemu_memory_read(struct iemu_machine *machine, uint64_t address, void *data, size_t length);
int iemu_memory_write(struct iemu_machine *machine, uint64_t address, const void *data,
                      size_t length);
/*
 * Arms one store: directly after a unit has fetched the granule that holds `trigger`, `value` is
 * stored at `target` (8 bytes, aligned). Shows what a torn update of an entry does. At most 16.
 */
int iemu_memory_arm_store(struct iemu_machine *machine, uint64_t trigger, uint64_t target,
                          uint64_t value);

/* ---- machine --------------------------------------------------------------------------- */

struct iemu_machine_config {
    uint32_t transactions; /* requests in flight at once, 1..4096 */
    uint32_t messages;     /* outbox capacity, 64..65536 */
    uint32_t trace_events; /* trace ring capacity, 0 (off) or a power of two up to 2^24 */
};

struct iemu_machine *iemu_machine_create(const struct iemu_machine_config *config, int *error);
/* Destroys the machine with its units and ports; regions live on while referenced. */
void iemu_machine_destroy(struct iemu_machine *machine);

/* Virtual time in nanoseconds. */
uint64_t iemu_clock_now(struct iemu_machine *machine);
/* Runs every event due up to `time`, then sets the clock there; never goes back. */
void iemu_clock_advance_to(struct iemu_machine *machine, uint64_t time);
/* Time of the next event, or UINT64_MAX if nothing is scheduled. */
uint64_t iemu_clock_next(struct iemu_machine *machine);

enum iemu_message_kind {
    IEMU_MESSAGE_INTERRUPT = 1, /* a device's message interrupt, after remapping */
    IEMU_MESSAGE_UNIT = 2,      /* a unit's own event (fault, invalidation completion, log) */
    IEMU_MESSAGE_BAR_WRITE = 3, /* data[0..size) for the window `owner` at `address` */
    IEMU_MESSAGE_BAR_READ = 4,  /* answer with iemu_outbox_answer(token) */
    IEMU_MESSAGE_INVALIDATE = 5, /* a device-TLB is asked to drop `address` to data (8 bytes: the
                                    last byte's address); answer with iemu_ats_complete, token is
                                    the ITag */
};

struct iemu_message {
    uint64_t time;      /* ns */
    uint64_t address;   /* message address, or physical address of a BAR access */
    uint32_t kind;      /* enum iemu_message_kind */
    uint32_t token;     /* of a BAR read, or an ITag */
    uint32_t owner;     /* BAR window's or device-TLB's owner, or the unit's number */
    uint16_t segment;
    uint16_t requester; /* who sent it, or is asked to invalidate; 0 for a unit's own */
    uint32_t size;      /* bytes used in data */
    uint32_t reserved;
    uint8_t data[64];
};

/* Takes up to `count` messages, oldest first; returns how many. */
size_t iemu_outbox_take(struct iemu_machine *machine, struct iemu_message *messages, size_t count);
/* Number of messages waiting. */
size_t iemu_outbox_size(struct iemu_machine *machine);
/* Answers a BAR read: `data` of the message's size, or NULL for an Unsupported Request. */
int iemu_outbox_answer(struct iemu_machine *machine, uint32_t token, const void *data,
                       size_t size);

/* Sends requests of `segment` with requester IDs first..last through `unit` (NULL: none). */
int iemu_route(struct iemu_machine *machine, uint16_t segment, uint16_t first, uint16_t last,
               struct iemu_unit *unit);
/* The unit that `requester` is routed to, or NULL. */
struct iemu_unit *iemu_routed_unit(struct iemu_machine *machine, uint16_t segment,
                                   uint16_t requester);

/* ---- DMA ------------------------------------------------------------------------------- */

struct iemu_port *iemu_port_create(struct iemu_machine *machine, uint16_t segment,
                                   uint16_t requester, int *error);
/*
 * Surprise removal: nothing new is accepted; what was sent still arrives and is translated, its
 * completions are discarded (pci 8). The handle stays valid until iemu_port_destroy.
 */
void iemu_port_remove(struct iemu_port *port);
void iemu_port_destroy(struct iemu_port *port);
/* Latency from the function to the IOMMU, and from the IOMMU to memory, in ns; default 0, 0. */
void iemu_port_set_latency(struct iemu_port *port, uint64_t fabric, uint64_t memory);
/* Requester ID with which later requests of this port reach the IOMMU. */
void iemu_port_set_requester(struct iemu_port *port, uint16_t requester);

enum iemu_verdict {
    IEMU_RULE_PEER = 1, /* goes to the BAR at its address, past every IOMMU */
    IEMU_RULE_REFUSE = 2, /* Unsupported Request that no IOMMU sees */
};

/* What the fabric does with some requests of a port before any IOMMU (spec/pci 4). */
struct iemu_port_rule {
    uint64_t first; /* address, as the request carries it */
    uint64_t last;  /* inclusive */
    uint16_t first_requester;
    uint16_t last_requester; /* inclusive */
    uint8_t address_types;   /* bit n: requests with enum iemu_at n */
    uint8_t verdict;         /* enum iemu_verdict */
    uint8_t reserved[2];
};
/*
 * Appends a rule. A request meets the rules when it would reach the IOMMU; the first that matches
 * decides. IEMU_E_FULL: there are 4096.
 */
int iemu_port_add_rule(struct iemu_port *port, const struct iemu_port_rule *rule);
void iemu_port_clear_rules(struct iemu_port *port);

enum iemu_status {
    IEMU_DONE = 0,          /* successful completion */
    IEMU_UR = 1,            /* Unsupported Request */
    IEMU_CA = 2,            /* Completer Abort */
    IEMU_PENDING = 3,       /* in flight; take it by its token */
    IEMU_BUSY = 4,          /* backpressure: send what is behind `done` again later */
    IEMU_REMOVED = 5,       /* the function is gone; nothing was sent */
    IEMU_NOT_TRANSLATED = 6, /* no translation allows the access, says the device-TLB */
};

enum iemu_atomic_kind {
    IEMU_FETCH_ADD = 1,
    IEMU_SWAP = 2,
    IEMU_COMPARE_SWAP = 3,
};

struct iemu_transfer {
    uint64_t address;
    uint32_t length; /* bytes, 0..16 MiB; 0 is a zero-length read */
    uint32_t pasid;
    uint8_t access; /* enum iemu_access */
    uint8_t at;     /* enum iemu_at */
    uint8_t atomic; /* enum iemu_atomic_kind if access is IEMU_ATOMIC: length 4 or 8 */
    uint8_t posted; /* a write whose outcome nobody will ask for */
    uint32_t flags; /* enum iemu_request_flag */
};

struct iemu_completion {
    uint64_t address;    /* of the request that failed, else of the transfer */
    uint64_t time;       /* ns at which the last part landed */
    uint32_t done;       /* bytes transferred before the first failure */
    uint32_t token;      /* of a pending transfer */
    uint32_t diagnostic; /* of the first failure */
    uint8_t status;      /* enum iemu_status */
    uint8_t fault;       /* architectural code of the first failure */
    uint8_t recorded;
    uint8_t reserved;
};

/*
 * One transfer, split at 4 KiB pages into requests. `data`: what is written, or room for what is
 * read; for an AtomicOp the operand (compare and swap: compare, then swap value) on entry and the
 * old value on return. A translation request is a read of exactly 8 bytes: one entry of a
 * translation completion (VT-d 6.2, pci 6) for the page of its address: R 0, W 1, U 2, N 10, S 11,
 * address 63:12 with the size. Returns enum iemu_status, or IEMU_E_ARGUMENT. A transfer that is
 * IEMU_PENDING is finished by iemu_dma_take with the same `data`: parts that were read at once are
 * there already. IEMU_BUSY: the transaction pool has no room. With a latency nothing was sent
 * then; without, `done` bytes of the completion were, up to the part that had to wait.
 */
int iemu_dma(struct iemu_port *port, const struct iemu_transfer *transfer, void *data,
             struct iemu_completion *completion);
/* The common case: untranslated, no PASID. */
int iemu_dma_read(struct iemu_port *port, uint64_t address, void *data, uint32_t length);
int iemu_dma_write(struct iemu_port *port, uint64_t address, const void *data, uint32_t length);
/* Completion of the last transfer begun on this port. */
void iemu_dma_last(struct iemu_port *port, struct iemu_completion *completion);
/*
 * Takes a transfer that has completed; `data` (may be NULL for writes) receives what was read.
 * Returns its enum iemu_status; IEMU_PENDING: not yet; IEMU_E_ARGUMENT: no such token.
 */
int iemu_dma_take(struct iemu_port *port, uint32_t token, void *data,
                  struct iemu_completion *completion);
/* Transactions of this port in the fabric (untranslated) and translated but not yet landed. */
void iemu_port_in_flight(struct iemu_port *port, uint32_t *fabric, uint32_t *translated);

/* ---- units ----------------------------------------------------------------------------- */

enum iemu_vendor {
    IEMU_VTD = 0,
    IEMU_AMDVI = 1,
};

enum iemu_replacement {
    IEMU_LRU = 0,
    IEMU_FIFO = 1,
    IEMU_RANDOM = 2, /* seeded: the same run evicts the same lines */
};

struct iemu_geometry {
    uint32_t sets; /* power of two, 1..65536 */
    uint32_t ways; /* 1..1024; sets * ways <= 2^20 */
    uint32_t replacement;
    uint32_t seed;
};

enum iemu_cache_id {
    IEMU_CACHE_IOTLB = 0,
    IEMU_CACHE_CONTEXT = 1, /* VT-d context cache, AMD-Vi device-table cache */
    IEMU_CACHE_PAGING = 2,  /* paging-structure cache of the second stage / host tables */
    IEMU_CACHE_INTERRUPT = 3,
    IEMU_CACHES = 4,           /* of a unit */
    IEMU_CACHE_DEVICE_TLB = 4, /* of a port */
};

/* How the IOTLB is looked up (VT-d 9.2). */
enum iemu_iotlb_lookup {
    IEMU_BY_REQUESTER = 0, /* one probe; a changed context entry stays hidden behind it */
    IEMU_BY_DOMAIN = 1,    /* through the context cache; shared between functions */
};

/* Latencies of the invalidation machine in ns; all 0: complete inside the doorbell write. */
struct iemu_timing {
    uint64_t command;      /* fetch and decode of one descriptor or command */
    uint64_t invalidation; /* one invalidation */
    uint64_t wait;         /* one wait descriptor or COMPLETION_WAIT */
    bool manual;           /* nothing moves but by iemu_unit_step */
};

struct iemu_unit_config {
    uint64_t base;               /* register window in physical memory */
    uint32_t window;             /* bytes: a power of two, 4 KiB or more */
    uint8_t host_address_width;  /* bits, 32..52 */
    uint8_t iotlb_lookup;        /* enum iemu_iotlb_lookup */
    uint16_t fetch_granule;      /* bits: 64, 128 or 256 */
    struct iemu_geometry geometry[IEMU_CACHES];
    struct iemu_timing timing;
};

struct iemu_vtd_config {
    struct iemu_unit_config unit;
    /*
     * Capability words. A bit of a feature that is not implemented (scalable mode, PASID, page
     * requests, posting, ...) makes its registers' fields and nothing else: the Python package
     * refuses it by name, and so should whoever calls this for software to see.
     */
    uint64_t cap;
    uint64_t ecap;
    uint8_t major; /* version register */
    uint8_t minor;
    bool compress_faults; /* 8.1 step 3: drop a fault of a requester that already has a record */
    uint8_t protected_shift; /* N+1 of the protected-memory registers (2.11), 12..32 */
    uint64_t invalidation_timeout; /* ns until a device-TLB invalidation is an ITE; 0: for ever */
};

struct iemu_amdvi_config {
    struct iemu_unit_config unit;
    uint64_t efr;
    uint16_t device_id; /* of the IOMMU's own PCI function */
    bool np_cache;      /* capability NpCache: not-present entries are cached */
    bool iotlb_sup;     /* capability IotlbSup: device-TLBs */
};

/* Both return NULL with *error set; the machine owns the unit. Units count from 0. */
struct iemu_unit *iemu_vtd_create(struct iemu_machine *machine,
                                  const struct iemu_vtd_config *config, int *error);
struct iemu_unit *iemu_amdvi_create(struct iemu_machine *machine,
                                    const struct iemu_amdvi_config *config, int *error);
uint32_t iemu_unit_number(struct iemu_unit *unit);
uint32_t iemu_unit_vendor(struct iemu_unit *unit); /* enum iemu_vendor */
/* The machine's unit of this number, or NULL. */
struct iemu_unit *iemu_machine_unit(struct iemu_machine *machine, uint32_t number);

/* Register access; a size or alignment the hardware does not take reads 0 and writes nothing. */
uint64_t iemu_mmio_read(struct iemu_unit *unit, uint64_t offset, uint32_t size);
void iemu_mmio_write(struct iemu_unit *unit, uint64_t offset, uint32_t size, uint64_t value);

/* Translates one request as the unit would, with every side effect. */
void iemu_translate(struct iemu_unit *unit, const struct iemu_request *request,
                    struct iemu_result *result);
/* The same request at `count` addresses; fills one result each. */
void iemu_translate_batch(struct iemu_unit *unit, const struct iemu_request *request,
                          const uint64_t *addresses, struct iemu_result *results, size_t count);

enum iemu_reset {
    IEMU_RESET_WARM = 0,     /* sticky fields survive */
    IEMU_RESET_POWER_ON = 1, /* everything returns to its default */
};
void iemu_unit_reset(struct iemu_unit *unit, uint32_t kind);

enum iemu_invalidation_state {
    IEMU_INVALIDATION_IDLE = 0,
    IEMU_INVALIDATION_SUBMITTED = 1,   /* queued, not yet fetched */
    IEMU_INVALIDATION_IN_PROGRESS = 2, /* fetched; its effect is still to come */
};
/* Moves the invalidation machine by one state; false if there was nothing to do. */
bool iemu_unit_step(struct iemu_unit *unit);
/* State of the oldest invalidation that is not complete. */
uint32_t iemu_unit_invalidation_state(struct iemu_unit *unit);
void iemu_unit_set_timing(struct iemu_unit *unit, const struct iemu_timing *timing);

struct iemu_cache_entry {
    uint64_t address;    /* first input address covered; 0 for context entries */
    uint64_t output;     /* output page, table address, or first quadword of the entry */
    uint64_t filled;     /* order of filling */
    uint32_t domain;
    uint32_t pasid;
    uint16_t requester;  /* 0 when looked up by domain */
    uint8_t cache;       /* enum iemu_cache_id */
    uint8_t page_shift;  /* input bytes covered, log2; 0 for context entries */
    uint8_t permissions;
    uint8_t negative;    /* a cached not-present or faulting entry */
    uint8_t attributes;
    uint8_t reserved;
};
/* Copies up to `count` live entries of one cache; returns how many there are. */
size_t iemu_unit_entries(struct iemu_unit *unit, uint32_t cache, struct iemu_cache_entry *entries,
                         size_t count);

struct iemu_counter {
    const char *name; /* a VT-d performance event's name where there is one */
    uint64_t value;
};
/* Copies up to `count` counters; returns how many there are. */
size_t iemu_unit_counters(struct iemu_unit *unit, struct iemu_counter *counters, size_t count);
/* The same of a port's device-TLB; 0 if it has none. */
size_t iemu_ats_entries(struct iemu_port *port, struct iemu_cache_entry *entries, size_t count);
size_t iemu_ats_counters(struct iemu_port *port, struct iemu_counter *counters, size_t count);

/* ---- device-TLBs (VT-d 6, AMD-Vi 8) --------------------------------------------------------- */

/*
 * A port's device-TLB. While ATS is enabled, untranslated transfers of the port go through it: a
 * hit is sent as a translated request, else a translation request fills it first. What may only
 * be used untranslated (U), and aligned DWORD writes to FEEx_xxxxh, are sent untranslated.
 * Transfers that bring an address type of their own, or IEMU_PAST_DEVICE_TLB, do without; a
 * translation request of the port fills it all the same, unless it has that flag. With latencies
 * it is looked up where the request would reach the IOMMU; what it does not know takes both ways
 * once more.
 */
enum iemu_answer { /* what the function does when it is asked to invalidate */
    IEMU_ANSWER_AFTER = 0,     /* after `delay` it drops the entries and answers */
    IEMU_ANSWER_NEVER = 1,     /* keeps them and says nothing */
    IEMU_ANSWER_WRONG_TAG = 2, /* after `delay` it drops them and answers for another ITag */
    IEMU_ANSWER_ASK = 3,       /* after `delay` IEMU_MESSAGE_INVALIDATE; does nothing by itself */
};

struct iemu_ats_config {
    struct iemu_geometry geometry;
    uint64_t delay;  /* ns, from the request to invalidate to its answer */
    uint32_t answer; /* enum iemu_answer */
    uint32_t owner;  /* of its messages */
};

/* Gives the port an empty device-TLB, ATS disabled. IEMU_E_STATE: it has one. */
int iemu_ats_create(struct iemu_port *port, const struct iemu_ats_config *config);
/* The enable bit of the ATS capability; disabling empties the device-TLB (pci 3.1). */
int iemu_ats_enable(struct iemu_port *port, bool on);
/* How requests to invalidate that come from now on are answered. */
int iemu_ats_set_answer(struct iemu_port *port, uint32_t answer, uint64_t delay);
/* Drops the entries that cover any byte of [first, last], as the function may at any time. */
int iemu_ats_drop(struct iemu_port *port, uint64_t first, uint64_t last);
/*
 * Sends an Invalidation Completion for the ITags whose bits are set; an ITag is done when `count`
 * (1..8) messages have named it. Returns IEMU_DONE; IEMU_UR if nobody takes it (no unit, or
 * translation is off); IEMU_REMOVED. A wrong ITag shows as the unit's ICE.
 */
int iemu_ats_complete(struct iemu_port *port, uint32_t tags, uint32_t count);

/* ---- stale-use detector (VT-d 9.4) ------------------------------------------------------- */

enum iemu_table_level { /* 1..6 are paging levels, 1 = the level of 4 KiB leaves */
    IEMU_LEVEL_UNKNOWN = 0,
    IEMU_LEVEL_CONTEXT = 16, /* context entry, device table entry */
    IEMU_LEVEL_ROOT = 17,
    IEMU_LEVEL_REGISTER = 18, /* root table pointer, translation mode */
    IEMU_LEVEL_INTERRUPT = 19, /* interrupt remapping table entry */
};

enum iemu_owed { /* bits: the invalidations that software owed and did not do */
    IEMU_OWED_CONTEXT_GLOBAL = 1,
    IEMU_OWED_CONTEXT_DEVICE = 2, /* AMD-Vi: INVALIDATE_DEVTAB_ENTRY */
    IEMU_OWED_IOTLB_GLOBAL = 4,
    IEMU_OWED_IOTLB_DOMAIN = 8,
    IEMU_OWED_IOTLB_PAGE = 16,
    IEMU_OWED_INTERRUPT = 32, /* interrupt entry cache, this index */
    IEMU_OWED_DEVICE_TLB_PAGE = 64, /* this function's device-TLB, this page */
    IEMU_OWED_DEVICE_TLB_ALL = 128, /* all of it */
};

struct iemu_stale_use {
    struct iemu_request request;
    struct iemu_result cached; /* what the device got */
    struct iemu_result fresh;  /* what the tables say now */
    uint64_t time;
    uint64_t entry;   /* physical address of the table entry that changed; 0: none, or unknown */
    uint64_t before;  /* its quadword when it was cached; IEMU_LEVEL_REGISTER: the address of */
    uint64_t after;   /* and now                         the first entry that was, is reached */
    uint32_t owed;    /* bits of enum iemu_owed */
    uint8_t cache;    /* enum iemu_cache_id that answered */
    uint8_t level;    /* enum iemu_table_level that changed */
    uint8_t invalidation; /* enum iemu_invalidation_state: not idle, and it may be on its way */
    uint8_t reserved;
};
/*
 * Switches the detector. Of what was cached before it was on it cannot tell which level changed
 * (IEMU_LEVEL_UNKNOWN), unless that is a level read since.
 */
int iemu_unit_watch(struct iemu_unit *unit, bool on);
/* Takes up to `count` reports, oldest first. *lost: reports dropped since the last call. */
size_t iemu_unit_stale_uses(struct iemu_unit *unit, struct iemu_stale_use *uses, size_t count,
                            uint64_t *lost);

/* ---- trace ------------------------------------------------------------------------------ */

enum iemu_trace_kind {
    IEMU_TRACE_TRANSLATE = 1,
    IEMU_TRACE_FAULT = 2,
    IEMU_TRACE_MMIO_READ = 3,
    IEMU_TRACE_MMIO_WRITE = 4,
    IEMU_TRACE_COMMAND = 5, /* a descriptor or command took effect: a, b = its quadwords */
    IEMU_TRACE_DMA = 6,     /* a transaction landed */
    IEMU_TRACE_MESSAGE = 7,
};

struct iemu_trace_event {
    uint64_t time;
    uint64_t sequence;
    uint64_t address;
    uint64_t a;
    uint64_t b;
    uint16_t kind;
    uint16_t requester;
    uint16_t unit;
    uint16_t code;
};
/* Copies up to `count` of the newest events, oldest first; returns how many. */
size_t iemu_trace_read(struct iemu_machine *machine, struct iemu_trace_event *events,
                       size_t count);
void iemu_trace_enable(struct iemu_machine *machine, bool on);

/* ---- journal and replay ------------------------------------------------------------------- */

/*
 * What happened to a machine, in order. Inputs are calls of this API that can change anything;
 * effects follow the input that caused them. What a CPU or a device stores in RAM is no record:
 * what a unit reads there is. Kinds and configuration values are stored in files: their numbers
 * stay, new ones are added at the end. Columns: `size`, `id`, `number`, value[0], value[1], ...
 */
enum iemu_record_kind {
    /* Inputs. */
    IEMU_RECORD_MACHINE = 1,    /* -, -, -: transactions, messages */
    IEMU_RECORD_RAM = 2,        /* -, -, -: base, bytes */
    IEMU_RECORD_BAR = 3,        /* -, -, owner: base, bytes */
    IEMU_RECORD_UNMAP = 4,      /* -, -, -: base */
    IEMU_RECORD_CONFIG = 5,     /* -, enum iemu_config_value, index: value; before its unit */
    IEMU_RECORD_UNIT = 6,       /* enum iemu_vendor, -, - */
    IEMU_RECORD_ROUTE = 7,      /* 1: to a unit, segment, unit: first, last requester ID */
    IEMU_RECORD_PORT = 8,       /* -, requester ID, port: segment; ports count from 0 */
    IEMU_RECORD_PORT_REMOVE = 9,
    IEMU_RECORD_PORT_DESTROY = 10, /* both: -, -, port */
    IEMU_RECORD_LATENCY = 11,   /* -, -, port: fabric, memory in ns */
    IEMU_RECORD_REQUESTER = 12, /* -, requester ID, port */
    IEMU_RECORD_ADVANCE = 13,   /* -, -, -: time in ns */
    IEMU_RECORD_TAKE = 14,      /* -, -, messages that were taken */
    IEMU_RECORD_ANSWER = 15,    /* 1: with data, -, token: bytes */
    IEMU_RECORD_MMIO_READ = 16, /* bytes, -, unit: offset, value */
    IEMU_RECORD_MMIO_WRITE = 17,
    IEMU_RECORD_TRANSLATE = 18, /* access, requester ID, unit: address, length, PASID, flags, AT */
    IEMU_RECORD_DMA = 19,       /* access, -, port: address, length, PASID, flags,
                                   AT | atomic << 8 | posted << 16 */
    IEMU_RECORD_DMA_TAKE = 20,  /* -, -, port: token */
    IEMU_RECORD_RESET = 21,     /* enum iemu_reset, -, unit */
    IEMU_RECORD_STEP = 22,      /* -, -, unit */
    IEMU_RECORD_TIMING = 23,    /* manual, -, unit: command, invalidation, wait in ns */
    IEMU_RECORD_ATS = 24,       /* enum iemu_answer, -, port: delay in ns, owner, sets | ways << 32,
                                   replacement | seed << 32 */
    IEMU_RECORD_ATS_ENABLE = 25, /* on, -, port */
    IEMU_RECORD_ATS_ANSWER = 26, /* enum iemu_answer, -, port: delay in ns */
    IEMU_RECORD_ATS_DROP = 27,   /* -, -, port: first, last address */
    IEMU_RECORD_ATS_COMPLETE = 28, /* count, -, port: ITags */
    IEMU_RECORD_RULE = 40,      /* enum iemu_verdict, address types, port: first, last address,
                                   first, last requester ID */
    IEMU_RECORD_NO_RULES = 41,  /* -, -, port */
    /* Effects. */
    IEMU_RECORD_TIME = 64,       /* -, -, -: time in ns of what follows */
    IEMU_RECORD_FETCH = 65,      /* quadwords, -, -: address, what the unit read */
    IEMU_RECORD_STORE = 66,      /* bytes, -, -: address, what the unit stored */
    IEMU_RECORD_MESSAGE = 67,    /* enum iemu_message_kind, requester ID, owner: address, data
                                    (8 bytes), bytes, segment, token */
    IEMU_RECORD_PAYLOAD = 68,    /* bytes, -, -: what a write carries to an interrupt or a BAR */
    IEMU_RECORD_TRANSLATED = 69, /* outcome, requester ID, domain: input, output address,
                                    diagnostic, fault, page_shift | permissions << 8 |
                                    attributes << 16 | recorded << 24 */
    IEMU_RECORD_COMPLETION = 70, /* -, -, -: status or error, done, token, address, diagnostic;
                                    none if a transfer was done in the call */
    IEMU_RECORD_RETURN = 71,     /* -, -, -: what the call returned, if not 0 */
};

enum iemu_config_value { /* by the names of the structs above; geometry with the cache as index */
    IEMU_CONFIG_BASE = 1,
    IEMU_CONFIG_WINDOW = 2,
    IEMU_CONFIG_HOST_ADDRESS_WIDTH = 3,
    IEMU_CONFIG_IOTLB_LOOKUP = 4,
    IEMU_CONFIG_FETCH_GRANULE = 5,
    IEMU_CONFIG_SETS = 6,
    IEMU_CONFIG_WAYS = 7,
    IEMU_CONFIG_REPLACEMENT = 8,
    IEMU_CONFIG_SEED = 9,
    IEMU_CONFIG_TIMING_COMMAND = 10,
    IEMU_CONFIG_TIMING_INVALIDATION = 11,
    IEMU_CONFIG_TIMING_WAIT = 12,
    IEMU_CONFIG_TIMING_MANUAL = 13,
    IEMU_CONFIG_CAP = 14,
    IEMU_CONFIG_ECAP = 15,
    IEMU_CONFIG_MAJOR = 16,
    IEMU_CONFIG_MINOR = 17,
    IEMU_CONFIG_COMPRESS_FAULTS = 18,
    IEMU_CONFIG_PROTECTED_SHIFT = 19,
    IEMU_CONFIG_EFR = 20,
    IEMU_CONFIG_DEVICE_ID = 21,
    IEMU_CONFIG_NP_CACHE = 22,
    IEMU_CONFIG_INVALIDATION_TIMEOUT = 23,
    IEMU_CONFIG_IOTLB_SUP = 24,
};

struct iemu_record {
    uint8_t kind; /* enum iemu_record_kind */
    uint8_t size;
    uint16_t id;
    uint32_t number;
    uint64_t value[5];
};

enum iemu_journal_end {
    IEMU_JOURNAL_OPEN = 0,
    IEMU_JOURNAL_LIMIT = 1, /* the limit of records is reached */
    IEMU_JOURNAL_TIME = 2,  /* virtual time has reached the limit */
    IEMU_JOURNAL_FULL = 3,  /* nobody took records, and there was no room for more */
};

struct iemu_journal_config {
    uint32_t capacity; /* records that wait to be taken, 1024..2^24 */
    uint32_t reserved;
    uint64_t limit;    /* records in all; 0: none */
    uint64_t until;    /* virtual time in ns; 0: no end */
};

/*
 * Starts a journal. Its first records build the machine as it stands, so it must not have been
 * used: IEMU_E_STATE if a unit's registers or counters are not as after creation, anything was in
 * flight, or messages wait; and if there is a journal already.
 */
int iemu_journal_start(struct iemu_machine *machine, const struct iemu_journal_config *config);
/*
 * Takes up to `count` records, oldest first. *end: why the journal ended by itself, enum
 * iemu_journal_end; it ends in front of the call whose records would not fit, so what is there is
 * complete.
 */
size_t iemu_journal_take(struct iemu_machine *machine, struct iemu_record *records, size_t count,
                         uint32_t *end);
/* Records that wait to be taken. */
size_t iemu_journal_size(struct iemu_machine *machine);
/* Ends the journal; what was not taken is lost. */
void iemu_journal_stop(struct iemu_machine *machine);

enum iemu_replay_outcome {
    IEMU_REPLAY_SAME = 0,      /* every record came out again */
    IEMU_REPLAY_DIVERGED = 1,  /* `got` came instead of the record at `position` */
    IEMU_REPLAY_MALFORMED = 2, /* the record at `position` cannot be an input there */
    IEMU_REPLAY_NO_MEMORY = 3,
};

struct iemu_replay {
    uint64_t position; /* records that came out again; of the first that did not */
    uint32_t outcome;  /* enum iemu_replay_outcome */
    uint32_t reserved;
    struct iemu_record got; /* kind 0: the call ended without it */
};

/*
 * Plays records on a machine that was just created, made of the values of the first record, and
 * compares what happens. What units read is taken from the records; RAM is hollow. Afterwards the
 * machine is as it was at the end, to be looked at.
 */
void iemu_replay(struct iemu_machine *machine, const struct iemu_record *records, size_t count,
                 struct iemu_replay *result);

/* ---- exported tables: the single source of truth for names and numbers -------------------- */

struct iemu_register_info {
    const char *name;
    const char *description;
    uint32_t offset; /* relative to `base` */
    uint16_t width;  /* bits */
    uint16_t count;  /* of an array; 1 else */
    uint32_t stride; /* bytes between elements */
    uint8_t base;    /* 0 fixed; 1 VT-d 16*ECAP.IRO; 2 VT-d 16*CAP.FRO */
    uint8_t reserved[3];
};

enum iemu_field_access {
    IEMU_RO = 0,
    IEMU_RW = 1,
    IEMU_WO = 2,
    IEMU_RW1C = 3,
    IEMU_RW1CS = 4, /* sticky: only a power-good reset restores the default */
    IEMU_ROS = 5,
    IEMU_RWL = 6,   /* read-only while locked */
    IEMU_RW1S = 7,
};

struct iemu_field_info {
    const char *name;
    const char *needs; /* capability expression, or "ALWAYS"; not met: reads 0, ignores writes */
    uint16_t reg;      /* index in the register table */
    uint8_t high;      /* bits of the whole register */
    uint8_t low;
    uint8_t access;    /* enum iemu_field_access */
    uint8_t reserved[3];
    uint64_t reset;    /* value of the field after a power-on reset */
};

struct iemu_fault_info {
    const char *slug;      /* of the diagnostic, one per distinct cause */
    const char *name;      /* the specification's name of the condition, or the event's */
    const char *condition;
    const char *section;
    uint8_t code;          /* architectural code */
    uint8_t qualified;     /* VT-d: suppressed by FPD */
    uint8_t reserved[6];
};

const struct iemu_register_info *iemu_registers(uint32_t vendor, size_t *count);
const struct iemu_field_info *iemu_fields(uint32_t vendor, size_t *count);
/* Row i is diagnostic i; row 0 is "none". */
const struct iemu_fault_info *iemu_faults(uint32_t vendor, size_t *count);
/* Whether the field is there in this unit's configuration. */
bool iemu_unit_has_field(struct iemu_unit *unit, size_t field);
/* Offset of a register in this unit's window. */
uint32_t iemu_unit_register_offset(struct iemu_unit *unit, size_t reg);

#endif
