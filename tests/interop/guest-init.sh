#!/bin/busybox sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Runs as the init of a guest (guest.py); what is to be done stands on the kernel's command line.
#
#   role=writer seed=S files=DEV raw=DEV
#       Step N: a new file is made and synced (the file system is DEV's, ext4); a record and, in every
#       fourth step, a discard go to the raw disk; N goes into its first block, synced; "durable N" is
#       said; the file of 30 steps before is removed, and what is free is trimmed now and then.
#       test_guest.py knows from this what each disk may hold at any instant.  Ends when a line comes.
#   role=reader what=DEV:MIB:COUNT,...
#       Says "read WHAT SHA256" of each part of a device, COUNT of MiB from MIB on.
#   nbd=DEV:HOST:PORT:CONNECTIONS:EXPORT,...
#       Before that, the kernel's NBD client is connected (busybox has one, too, that can less).
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /mnt /run
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo

# The machine is off when this shell ends, whatever became of it.
trap 'poweroff -f' EXIT
set -e

for module in /modules/*; do
    insmod "$module"
done
for word in $(cat /proc/cmdline); do
    case $word in
    role=* | seed=* | files=* | raw=* | what=* | nbd=*) eval "${word%%=*}=\${word#*=}" ;;
    esac
done

if [ -n "$nbd" ]; then
    ip link set lo up
    ip link set eth0 up
    ip addr add 10.0.2.15/24 dev eth0
    for one in $(echo "$nbd" | tr , ' '); do
        IFS=: read -r dev host port connections export <<END
$one
END
        /programs/nbd-client "$host" "$port" "/dev/$dev" -N "$export" -b 512 -connections "$connections"
    done
fi

writer() {
    mount -t ext4 -o discard "/dev/$files" /mnt
    { read -r _; : >/stop; } </dev/ttyS0 &
    n=0
    echo "ready"
    while [ ! -e /stop ]; do
        n=$((n + 1))
        yes "$seed $n" | head -c $((n * 7919 % 200000 + 1)) | dd of=/mnt/f$n bs=64k conv=fsync 2>/dev/null
        # 16 KiB, in an order that is not the disk's, behind the first MiB.
        yes "$seed raw $n" | head -c 16384 |
            dd of="/dev/$raw" bs=16k seek=$((64 + n * 37 % 256)) conv=notrunc,fsync 2>/dev/null
        [ $((n % 4)) != 0 ] || blkdiscard -o $((1048576 + n * 53 % 256 * 16384)) -l 16384 "/dev/$raw"
        printf '%-511s\n' $n | dd of="/dev/$raw" bs=512 conv=notrunc,fsync 2>/dev/null
        echo "durable $n"
        [ $n -le 30 ] || rm /mnt/f$((n - 30))
        [ $((n % 10)) != 0 ] || fstrim /mnt
    done
    umount /mnt
    sync
    echo "written $n"
}

reader() {
    for one in $(echo "$what" | tr , ' '); do
        IFS=: read -r dev mib count <<END
$one
END
        sum=$(dd if="/dev/$dev" bs=1M skip="$mib" count="$count" 2>/dev/null | sha256sum)
        echo "read $one ${sum%% *}"
    done
}

"$role"
for one in $(echo "$nbd" | tr , ' '); do
    /programs/nbd-client -d "/dev/${one%%:*}"
done
echo "done"
