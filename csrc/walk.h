/*
 * The walk of a radix page table, one function for every format: 9 index bits a level, 8-byte
 * entries, level 1 holds 4 KiB pages. What an entry means is the format's decode function, which
 * is inlined, so each format is a compile-time instance.
 */
#ifndef IEMU_WALK_H
#define IEMU_WALK_H

#include "unit.h"

enum iemu_entry_kind {
    IEMU_ENTRY_TABLE,
    IEMU_ENTRY_LEAF,
    IEMU_ENTRY_FAULT, /* not present or malformed: see diagnostic */
};

struct iemu_decoded {
    uint64_t address;    /* next table or page */
    uint32_t diagnostic; /* IEMU_ENTRY_FAULT */
    uint8_t kind;        /* enum iemu_entry_kind */
    uint8_t next_level;  /* IEMU_ENTRY_TABLE: below the present level, at least 1 */
    uint8_t shift;       /* IEMU_ENTRY_LEAF: log2 of the page size */
    uint8_t permissions;
    uint8_t attributes; /* of the leaf */
};

typedef struct iemu_decoded (*iemu_decode)(const struct iemu_unit *unit, uint64_t entry,
                                           unsigned level, uint64_t address);

struct iemu_walk {
    struct iemu_unit *unit;
    struct iemu_trail *trail; /* NULL unless watched */
    uint64_t address;         /* input address, within the table's reach */
    uint64_t table;           /* root table */
    uint32_t domain;          /* tag of paging-structure lines */
    uint8_t level;            /* of the root table */
    bool use_caches;
    /* The answer: */
    bool at_root;             /* the fault happened in the root table */
    bool fetch_failed;
    uint8_t permissions;      /* over the whole path */
    uint64_t reads;           /* entries read from memory */
    uint64_t entry_address;   /* of the last entry read */
    struct iemu_decoded leaf; /* or the fault */
};

static inline unsigned iemu_level_shift(unsigned level)
{
    return 12 + 9 * (level - 1);
}

/* Returns true with a leaf, false with a fault (or fetch_failed). */
static inline __attribute__((always_inline)) bool iemu_walk(struct iemu_walk *w,
                                                            iemu_decode decode)
{
    struct iemu_unit *unit = w->unit;
    struct iemu_cache *cache = &unit->cache[IEMU_CACHE_PAGING];
    unsigned level = w->level, shift, keep = w->trail ? w->trail->count : 0;
    uint64_t table = w->table;

    w->permissions = IEMU_READ | IEMU_WRITE;
    w->fetch_failed = false;
    w->at_root = true;
    w->reads = 0;
    if (w->use_caches) {
        const struct iemu_line *line = iemu_cache_find(cache, w->address, w->domain, &shift);

        if (line) {
            table = line->value[0] & ~0xfffull;
            w->permissions = line->value[0] & IEMU_LEAF_PERMISSIONS;
            level = line->flags;
            w->at_root = false;
            iemu_trail_hit(unit, IEMU_CACHE_PAGING, line, w->trail, keep);
        }
    }
    for (;;) {
        struct iemu_decoded d;
        struct iemu_line *line;
        uint64_t entry;

        shift = iemu_level_shift(level);
        w->entry_address = table + 8 * (w->address >> shift & 0x1ff);
        w->reads++;
        if (iemu_unlikely(!iemu_fetch64(&unit->machine->memory, w->entry_address, &entry))) {
            w->fetch_failed = true;
            return false;
        }
        iemu_trail_add(w->trail, (uint8_t)level, w->entry_address, &entry, 1);
        d = decode(unit, entry, level, w->address);
        w->permissions &= d.permissions;
        if (d.kind != IEMU_ENTRY_TABLE) {
            w->leaf = d;
            return d.kind == IEMU_ENTRY_LEAF;
        }
        table = d.address;
        level = d.next_level;
        w->at_root = false;
        if (!w->use_caches)
            continue;
        /* An entry that skips levels is cached for the addresses that may skip: the part whose
         * index bits of those levels are 0, which is what the next table covers. */
        shift = iemu_level_shift(level + 1);
        line = iemu_cache_fill(cache, iemu_page_key(w->address, shift), w->domain,
                               iemu_page_index(w->address, shift), w->domain);
        line->value[0] = table | w->permissions;
        line->flags = level;
        iemu_trail_fill(unit, IEMU_CACHE_PAGING, line, w->trail);
    }
}

#endif
