/*
 * iemu: what the check inside a guest cannot do from a shell.
 *
 *   iemu dma BDF read|write IOVA LENGTH   order one DMA of the attacker, through sysfs
 *   iemu vfio BDF GROUP                   claim the attacker for user space and use it
 *   iemu look DISK ROUNDS                 read, and ask the host to look right after the unmap
 *   iemu say WORDS...                     one line into the kernel's log
 *
 * Statically linked, so that it runs in a file system that holds nothing else.
 * The attacker's registers are described in iommu_emu/devices/attacker.py.
 * SPDX-License-Identifier: MIT
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
    BAR_SIZE = 4096,
    ADDRESS = 0x00, /* 64 bits */
    LENGTH = 0x08,
    COMMAND = 0x0c, /* 1: read memory into DATA, 2: write DATA to memory */
    STATUS = 0x10,  /* 0 none yet, 1 under way, 2 done, 3 Unsupported Request, 4 Completer Abort */
    FAULT = 0x14,   /* reason of the fault that the IOMMU reported, or 0 */
    DATA = 0x800,
    DATA_SIZE = 2048,
    DO_READ = 1,
    DO_WRITE = 2,
    DONE = 2,
    UNSUPPORTED = 3,
};

static const uint64_t IOVA = 0x40000000;

static void die(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    if (errno)
        printf(": %s", strerror(errno));
    putchar('\n');
    exit(1);
}

static uint32_t get(volatile uint8_t *bar, unsigned offset)
{
    return *(volatile uint32_t *)(bar + offset);
}

static void put(volatile uint8_t *bar, unsigned offset, uint32_t value)
{
    *(volatile uint32_t *)(bar + offset) = value;
}

/* Orders a DMA and waits up to 2 s for its end. Returns STATUS. */
static uint32_t order(volatile uint8_t *bar, uint32_t command, uint64_t address, uint32_t length)
{
    put(bar, ADDRESS, (uint32_t)address);
    put(bar, ADDRESS + 4, (uint32_t)(address >> 32));
    put(bar, LENGTH, length);
    put(bar, COMMAND, command);
    for (int i = 0; i < 2000; i++) {
        uint32_t status = get(bar, STATUS);

        if (status >= DONE)
            return status;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    errno = 0;
    die("the device never finished a DMA at %#llx", (unsigned long long)address);
    return 0;
}

static int order_through_sysfs(char **arguments)
{
    char path[128];
    uint32_t status, command = strcmp(arguments[1], "read") ? DO_WRITE : DO_READ;
    uint64_t address = strtoull(arguments[2], NULL, 0);
    uint32_t length = (uint32_t)strtoul(arguments[3], NULL, 0);
    volatile uint8_t *bar;
    int file;

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource0", arguments[0]);
    file = open(path, O_RDWR | O_SYNC);
    if (file < 0)
        die("open %s", path);
    bar = mmap(NULL, BAR_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (bar == MAP_FAILED)
        die("mmap %s", path);
    status = order(bar, command, address, length);
    printf("status=%u fault=%#x\n", status, get(bar, FAULT));
    return 0;
}

struct claimed {
    int container, group, device;
    volatile uint8_t *bar;
};

/* Claims the device as VFIO wants it: container, group, IOMMU, then the device and its BAR 0. */
static struct claimed claim(const char *bdf, const char *group)
{
    struct vfio_group_status status = {.argsz = sizeof(status)};
    struct vfio_region_info region = {.argsz = sizeof(region), .index = VFIO_PCI_BAR0_REGION_INDEX};
    struct claimed c;
    char path[64];

    c.container = open("/dev/vfio/vfio", O_RDWR);
    if (c.container < 0)
        die("open /dev/vfio/vfio");
    if (ioctl(c.container, VFIO_GET_API_VERSION) != VFIO_API_VERSION ||
        !ioctl(c.container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU))
        die("vfio has no type 1 version 2 IOMMU");
    snprintf(path, sizeof(path), "/dev/vfio/%s", group);
    c.group = open(path, O_RDWR);
    if (c.group < 0)
        die("open %s", path);
    if (ioctl(c.group, VFIO_GROUP_GET_STATUS, &status))
        die("VFIO_GROUP_GET_STATUS");
    errno = 0;
    if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE))
        die("group %s is not viable", group);
    if (ioctl(c.group, VFIO_GROUP_SET_CONTAINER, &c.container))
        die("VFIO_GROUP_SET_CONTAINER");
    if (ioctl(c.container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
        die("VFIO_SET_IOMMU");
    c.device = ioctl(c.group, VFIO_GROUP_GET_DEVICE_FD, bdf);
    if (c.device < 0)
        die("VFIO_GROUP_GET_DEVICE_FD %s", bdf);
    if (ioctl(c.device, VFIO_DEVICE_GET_REGION_INFO, &region))
        die("VFIO_DEVICE_GET_REGION_INFO");
    c.bar = mmap(NULL, BAR_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, c.device,
                 (off_t)region.offset);
    if (c.bar == MAP_FAILED)
        die("mmap of BAR 0");
    return c;
}

static void map(const struct claimed *c, void *buffer, uint64_t size)
{
    struct vfio_iommu_type1_dma_map request = {
        .argsz = sizeof(request),
        .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)buffer,
        .iova = IOVA,
        .size = size,
    };

    if (ioctl(c->container, VFIO_IOMMU_MAP_DMA, &request))
        die("VFIO_IOMMU_MAP_DMA");
}

static void unmap(const struct claimed *c, uint64_t size)
{
    struct vfio_iommu_type1_dma_unmap request = {
        .argsz = sizeof(request),
        .iova = IOVA,
        .size = size,
    };

    if (ioctl(c->container, VFIO_IOMMU_UNMAP_DMA, &request) || request.size != size)
        die("VFIO_IOMMU_UNMAP_DMA");
}

/* The device copies 2 KiB within the buffer; then the buffer is taken away from it. */
static int use_through_vfio(char **arguments)
{
    const uint64_t size = 64 << 10;
    struct claimed c = claim(arguments[0], arguments[1]);
    uint8_t *buffer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t status;

    if (buffer == MAP_FAILED)
        die("mmap");
    for (unsigned i = 0; i < DATA_SIZE; i++)
        buffer[i] = (uint8_t)(i * 7 + (i >> 8));
    map(&c, buffer, size);
    errno = 0;
    status = order(c.bar, DO_READ, IOVA, DATA_SIZE);
    if (status != DONE)
        die("DMA read of a mapped buffer: status %u, fault %#x", status, get(c.bar, FAULT));
    /* Across a page boundary, so that two translations take part. */
    status = order(c.bar, DO_WRITE, IOVA + 0x2c00, DATA_SIZE);
    if (status != DONE)
        die("DMA write of a mapped buffer: status %u, fault %#x", status, get(c.bar, FAULT));
    if (memcmp(buffer, buffer + 0x2c00, DATA_SIZE))
        die("the device copied something else");
    unmap(&c, size);
    errno = 0;
    memset(buffer, 0, size);
    status = order(c.bar, DO_WRITE, IOVA, 4);
    if (status != UNSUPPORTED)
        die("DMA after the unmap: status %u, fault %#x", status, get(c.bar, FAULT));
    for (unsigned i = 0; i < 4; i++)
        if (buffer[i])
            die("DMA after the unmap reached the buffer");
    printf("copied=%u fault=%#x iova=%#llx\n", DATA_SIZE, get(c.bar, FAULT),
           (unsigned long long)IOVA);
    return 0;
}

/*
 * Reads past the page cache: one page and sixteen in turns, since Linux flushes transfers of several
 * pages at once from 7.3 on, whatever its policy. When read() is back, the kernel has unmapped the
 * buffer; the host is asked right away, because a deferred invalidation comes within 10 ms.
 */
static int ask_to_look(char **arguments)
{
    const size_t small = 4 << 10, large = 64 << 10;
    long rounds = strtol(arguments[1], NULL, 0);
    int disk = open(arguments[0], O_RDONLY | O_DIRECT), log = open("/dev/kmsg", O_WRONLY);
    void *buffer = mmap(NULL, large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (disk < 0 || log < 0 || buffer == MAP_FAILED)
        die("open %s", arguments[0]);
    for (long i = 0; i < rounds; i++) {
        size_t size = i % 2 ? large : small;
        char line[64];
        int length = snprintf(line, sizeof(line), "<5>IEMU ask look %zu\n", size);

        if (pread(disk, buffer, size, (off_t)(i * (long)large)) != (ssize_t)size)
            die("read %s", arguments[0]);
        if (write(log, line, (size_t)length) != length)
            die("write /dev/kmsg");
        nanosleep(&(struct timespec){.tv_nsec = 60000000}, NULL);
    }
    return 0;
}

/*
 * A shell writes a line in pieces; the kernel's log takes each write as a record, and prints one
 * without a newline only when the next one follows.
 */
static int say(int count, char **words)
{
    char line[900] = "<5>IEMU";
    size_t used = strlen(line);
    int file = open("/dev/kmsg", O_WRONLY);

    for (int i = 0; i < count; i++) {
        int wrote = snprintf(line + used, sizeof(line) - 1 - used, " %s", words[i]);

        used = used + (size_t)wrote < sizeof(line) - 2 ? used + (size_t)wrote : sizeof(line) - 2;
    }
    line[used++] = '\n';
    return file < 0 || write(file, line, used) != (ssize_t)used;
}

int main(int count, char **arguments)
{
    if (count == 6 && !strcmp(arguments[1], "dma"))
        return order_through_sysfs(arguments + 2);
    if (count == 4 && !strcmp(arguments[1], "vfio"))
        return use_through_vfio(arguments + 2);
    if (count == 4 && !strcmp(arguments[1], "look"))
        return ask_to_look(arguments + 2);
    if (count > 2 && !strcmp(arguments[1], "say"))
        return say(count - 2, arguments + 2);
    fprintf(stderr, "usage: iemu dma BDF read|write IOVA LENGTH | vfio BDF GROUP |"
                    " look DISK ROUNDS | say WORDS\n");
    return 2;
}
