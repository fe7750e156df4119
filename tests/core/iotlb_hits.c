/* Prints how many instructions 100 IOTLB hits take, for hit_cost.py. */
#include "iommu_emu.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

static void poke(struct iemu_machine *m, uint64_t at, uint64_t value)
{
    iemu_memory_write(m, at, &value, sizeof(value));
}

static void hits(struct iemu_unit *unit, const struct iemu_request *request)
{
    struct iemu_result result;

    for (int i = 0; i < 100; i++)
        iemu_translate(unit, request, &result);
    if (result.address != 0x200000)
        abort();
}

/* A child does the hits between two stops; single-stepping it counts what it executes. */
static long instructions(struct iemu_unit *unit, const struct iemu_request *request)
{
    long count = 0;
    int status;
    pid_t child = fork();

    if (child < 0)
        abort();
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        hits(unit, request);
        raise(SIGSTOP);
        _exit(0);
    }
    for (waitpid(child, &status, 0);; count++) {
        if (ptrace(PTRACE_SINGLESTEP, child, NULL, NULL))
            abort();
        waitpid(child, &status, 0);
        if (!WIFSTOPPED(status) || WSTOPSIG(status) == SIGSTOP)
            break;
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return count;
}

int main(int argc, char **argv)
{
    struct iemu_machine_config mc = {16, 64, 0};
    struct iemu_vtd_config c = {.cap = UNIT_CAP, .ecap = UNIT_ECAP, .major = 1, .protected_shift = 21};
    struct iemu_request request = {.address = 0x5000, .length = 4, .access = IEMU_READ};
    struct iemu_machine *m;
    struct iemu_region *ram;
    struct iemu_unit *unit;
    struct iemu_result result;
    const char *mode = argc > 1 ? argv[1] : "";
    int error;

    c.unit = (struct iemu_unit_config){.base = 0xfed90000, .window = 4096,
                                       .host_address_width = 39, .fetch_granule = 128};
    for (int i = 0; i < IEMU_CACHES; i++)
        c.unit.geometry[i] = (struct iemu_geometry){64, 4, IEMU_LRU, 1};
    m = iemu_machine_create(&mc, &error);
    ram = iemu_region_create(0x100000, -1, 0, &error);
    iemu_memory_map(m, 0, ram);
    unit = iemu_vtd_create(m, &c, &error);
    if (!unit)
        abort();
    if (!strcmp(mode, "recorded") &&
        iemu_journal_start(m, &(struct iemu_journal_config){.capacity = 1024}))
        abort();
    poke(m, 0x1000, 0x2001);
    poke(m, 0x2000, 0x3001);
    poke(m, 0x2008, 1 << 8 | 1);
    poke(m, 0x3000, 0x4003);
    poke(m, 0x4000, 0x5003);
    poke(m, 0x5028, 0x200003);
    iemu_mmio_write(unit, 0x20, 8, 0x1000);
    iemu_mmio_write(unit, 0x18, 4, 1u << 30);
    iemu_mmio_write(unit, 0x18, 4, 1u << 31);
    iemu_translate(unit, &request, &result);
    /* On, used, and off again. */
    if (!strcmp(mode, "watched")) {
        iemu_unit_watch(unit, true);
        iemu_translate(unit, &request, &result);
        iemu_unit_watch(unit, false);
    }
    iemu_journal_stop(m);
    printf("%ld\n", instructions(unit, &request));
    iemu_machine_destroy(m);
    iemu_region_release(ram);
    return 0;
}
