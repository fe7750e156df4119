#!/bin/busybox sh
# Process 1 of the guest: loads the drivers, then runs the phases that /etc/check.conf names.
# Results go into the kernel's log, one record each, in the order of what the kernel itself says:
#   IEMU phase NAME                 a phase begins
#   IEMU check NAME ok|fail DETAIL  a result
#   IEMU skip NAME REASON           something cannot be tried with this kernel
#   IEMU fact NAME VALUE...         something for the report
#   IEMU ask WHAT                   the host is to do something; the guest waits until it sees it
#   IEMU end                        nothing more is to come

/bin/busybox mkdir -p /bin /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t tmpfs tmpfs /tmp
. /etc/check.conf

say() { iemu say "$@"; }

# pass NAME DETAIL...; fail NAME DETAIL...
pass() { name=$1; shift; say check "$name" ok "$@"; }
fail() { name=$1; shift; say check "$name" fail "$@"; }

# wait_for SECONDS COMMAND...: until the command succeeds
wait_for() {
    read -r uptime _ < /proc/uptime
    deadline=$((${uptime%%.*} + $1)); shift
    until "$@"; do
        read -r uptime _ < /proc/uptime
        [ "${uptime%%.*}" -lt $deadline ] || return 1
        usleep 20000
    done
}
gone() { ! [ -e "$1" ]; }
link() { basename "$(readlink "$1")"; }
is_driven_by() { [ "$(link "/sys/bus/pci/devices/$1/driver")" = "$2" ]; }
find_disk() { # find_disk BDF: sets $disk
    for found in /sys/bus/pci/devices/"$1"/nvme/nvme*/nvme[0-9]n1; do
        disk=/dev/${found##*/}
    done
    [ -b "$disk" ]
}

checksum() { sha256sum "$1" | cut -d ' ' -f 1; }

load_modules() {
    while read -r file; do
        insmod "/modules/$file" || fail "load-${file%.ko}" "insmod failed"
    done < /modules/order
    # Interrupt remapping is off; VFIO may be a module or built in.
    for unsafe in /sys/module/*/parameters/allow_unsafe_interrupts; do
        [ -e "$unsafe" ] && echo 1 > "$unsafe"
    done
}

need_driver() { # need_driver NAME: or the check ends here
    [ -d "/sys/bus/pci/drivers/$1" ] && return
    fail "driver-$1" "neither built into this kernel nor among its modules (see --modules)"
    finish
}

finish() {
    for found in /sys/block/nvme*; do
        [ -e "$found/stat" ] && say fact disk "${found##*/}" $(cat "$found/stat")
    done
    say end
    sync
    poweroff -f
    sleep 60
}

# ---- phases ---------------------------------------------------------------------------------

phase_facts() {
    say fact kernel "$(uname -r)"
    say fact command-line "$(cat /proc/cmdline)"
    for group in /sys/kernel/iommu_groups/*; do
        [ -d "$group" ] || continue
        for device in "$group"/devices/*; do
            say fact group "${group##*/}" "${device##*/}" "$(cat "$group/type" 2>/dev/null)"
        done
    done
    for device in $NVME $ATTACKER $PLUGGABLE; do
        if [ -e "/sys/bus/pci/devices/$device/iommu_group" ]; then
            pass "group-$device" "$(link "/sys/bus/pci/devices/$device/iommu_group")"
        else
            fail "group-$device" "in no IOMMU group: this kernel does not drive our IOMMU" \
                "(has it INTEL_IOMMU, and no intel_iommu=off?)"
            finish
        fi
    done
}

# verify NAME FIRST: the disk's blocks from FIRST (64 KiB each) hold the pattern
verify() {
    dd "if=$disk" of=/tmp/back bs=64k "skip=$2" "count=$BLOCKS" iflag=direct 2>/dev/null
    sum=$(checksum /tmp/back)
    if [ "$sum" = "$pattern" ]; then
        pass "$1" "sha256=$sum offset=$(($2 << 16)) bytes=$((BLOCKS << 16))"
    else
        fail "$1" "sha256=$sum expected=$pattern offset=$(($2 << 16)) bytes=$((BLOCKS << 16))"
    fi
}

# store NAME FIRST: put a new pattern there, past the page cache
store() {
    dd if=/dev/urandom of=/tmp/pattern bs=64k "count=$BLOCKS" 2>/dev/null
    pattern=$(checksum /tmp/pattern)
    if dd if=/tmp/pattern "of=$disk" bs=64k "seek=$2" oflag=direct conv=notrunc 2>/tmp/error; then
        pass "$1" "sha256=$pattern offset=$(($2 << 16)) bytes=$((BLOCKS << 16))"
    else
        fail "$1" "$(head -n 1 /tmp/error)"
    fi
}

# need_disk BDF NAME: sets $disk, or ends the check
need_disk() {
    if ! wait_for 20 find_disk "$1"; then
        fail "$2" "no disk appeared for $1"
        finish
    fi
}

# interrupts NAME BDF KIND: the driver got what the device has
interrupts() {
    kinds=$(cat /sys/bus/pci/devices/"$2"/msi_irqs/* 2>/dev/null | sort | uniq -c | tr -s ' \n' ' ')
    case $kinds in
        *" $3 ") pass "$1" $kinds ;;
        *) fail "$1" "expected $3, got $kinds" ;;
    esac
}

phase_nvme() {
    need_driver nvme
    need_disk "$NVME" nvme-probe
    pass nvme-probe "$disk size=$(($(cat "/sys/block/${disk##*/}/size") * 512))"
    interrupts nvme-interrupts "$NVME" msix
    store nvme-write-direct 0
    verify nvme-read-direct 0
    # Through the page cache: one write of everything, written back and flushed by fsync.
    dd if=/dev/urandom of=/tmp/pattern bs=64k "count=$BLOCKS" 2>/dev/null
    pattern=$(checksum /tmp/pattern)
    if dd if=/tmp/pattern "of=$disk" bs=64k "seek=$BLOCKS" conv=notrunc,fsync 2>/tmp/error; then
        pass nvme-write-flush "sha256=$pattern offset=$((BLOCKS << 16)) bytes=$((BLOCKS << 16))"
    else
        fail nvme-write-flush "$(head -n 1 /tmp/error)"
    fi
    sync
    echo 3 > /proc/sys/vm/drop_caches
    dd "if=$disk" of=/tmp/back bs=64k "skip=$BLOCKS" "count=$BLOCKS" 2>/dev/null
    sum=$(checksum /tmp/back)
    [ "$sum" = "$pattern" ] && pass nvme-read-cached "sha256=$sum" || fail nvme-read-cached "sha256=$sum"
}

phase_rebind() {
    find_disk "$NVME"
    echo "$NVME" > /sys/bus/pci/drivers/nvme/unbind
    if ! wait_for 20 gone "$disk"; then
        fail nvme-unbind "$disk is still there"
        return
    fi
    pass nvme-unbind "$disk is gone"
    echo "$NVME" > /sys/bus/pci/drivers/nvme/bind
    need_disk "$NVME" nvme-bind
    verify nvme-bind-read "$BLOCKS"
    store nvme-bind-write $((2 * BLOCKS))
    verify nvme-bind-reread $((2 * BLOCKS))
}

phase_hotplug() {
    need_disk "$PLUGGABLE" pluggable-probe
    interrupts pluggable-interrupts "$PLUGGABLE" msi
    store pluggable-write 0
    verify pluggable-read 0
    say ask unplug
    if ! wait_for 40 gone "/sys/bus/pci/devices/$PLUGGABLE"; then
        fail pluggable-unplug "$PLUGGABLE is still there"
        return
    fi
    pass pluggable-unplug "$PLUGGABLE is gone"
    say ask plug
    need_disk "$PLUGGABLE" pluggable-plug
    verify pluggable-plug-read 0
    store pluggable-plug-write "$BLOCKS"
    verify pluggable-plug-reread "$BLOCKS"
}

# attack NAME read|write ADDRESS ANSWER: one DMA of the attacker, and what its device must report
attack() {
    answer=$(iemu dma "$ATTACKER" "$2" "$3" 64)
    case $answer in
        $4) pass "$1" "$2 $3 $answer" ;;
        *) fail "$1" "$2 $3 $answer" ;;
    esac
}

phase_fault() {
    echo 1 > "/sys/bus/pci/devices/$ATTACKER/enable"
    if [ "$POLICY" = passthrough ]; then
        # Everything a device reads is there; a write would hit whoever owns that page.
        attack passthrough-read read "$ALLOWED" "status=2 fault=0"
    else
        # Which fault it is, the host holds against what the kernel prints.
        attack fault-write write "$FORBIDDEN_WRITE" "status=3 fault=0x*"
        attack fault-read read "$FORBIDDEN_READ" "status=3 fault=0x*"
    fi
    echo 0 > "/sys/bus/pci/devices/$ATTACKER/enable"
}

phase_vfio() {
    if ! [ -d /sys/bus/pci/drivers/vfio-pci ] || ! [ -e /dev/vfio/vfio ]; then
        say skip vfio "this kernel has no vfio-pci, or no container for it (see --modules)"
        return
    fi
    group=$(link "/sys/bus/pci/devices/$ATTACKER/iommu_group")
    echo vfio-pci > "/sys/bus/pci/devices/$ATTACKER/driver_override"
    echo "$ATTACKER" > /sys/bus/pci/drivers_probe
    if ! wait_for 10 is_driven_by "$ATTACKER" vfio-pci; then
        fail vfio-bind "vfio-pci did not take $ATTACKER"
        return
    fi
    pass vfio-bind "$ATTACKER group $group"
    if answer=$(iemu vfio "$ATTACKER" "$group"); then
        pass vfio-dma "$answer"
    else
        fail vfio-dma "$answer"
    fi
    echo "$ATTACKER" > /sys/bus/pci/drivers/vfio-pci/unbind
    echo > "/sys/bus/pci/devices/$ATTACKER/driver_override"
}

# After each read the buffer is unmapped; the host looks what the device still reaches.
phase_window() {
    need_disk "$NVME" window-disk
    error=$(iemu look "$disk" "$ROUNDS") || fail window-reads "$error"
}

# Reads until the host ends the guest.
phase_break() {
    need_driver nvme
    need_disk "$NVME" break-disk
    say ask break
    while :; do
        dd "if=$disk" of=/dev/null bs=4k iflag=direct 2>/dev/null
    done
}

say phase modules
load_modules
for phase in $PHASES; do
    say phase "$phase"
    "phase_$phase"
done
finish
