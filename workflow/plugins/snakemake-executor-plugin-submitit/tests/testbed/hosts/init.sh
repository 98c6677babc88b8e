#!/bin/sh -e
# Process 1 of a host: gives it a root of its own, then waits and reaps orphans.
# init.sh NAME ROOT CONTROLLERS HOSTS SHARED...: ROOT is an overlay on the machine's root, HOSTS the
# text of /etc/hosts, each SHARED a folder that the host has at the same path as the machine.
name=$1 root=$2 controllers=$3 hosts=$4
shift 4
hostname "$name"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=755 cgroup "$root/sys/fs/cgroup"
for controller in $controllers; do
  mkdir "$root/sys/fs/cgroup/$controller"
  mount -t cgroup -o "$controller" cgroup "$root/sys/fs/cgroup/$controller"
done
for folder; do
  mkdir -p "$root$folder"
  mount --rbind "$folder" "$root$folder"
done
mkdir -p "$root/run/lock" "$root/mnt/machine"
echo "$name" > "$root/etc/hostname"
printf '%s\n' "$hosts" > "$root/etc/hosts"
: > "$root/etc/resolv.conf" # no name server: other names fail at once
cd "$root"
pivot_root . mnt/machine
cd /
umount -l /mnt/machine
touch /run/booted
trap : TERM
while :; do sleep infinity & wait; done
