#!/bin/bash
# Pid 1 of a host in User-Mode Linux (uml.py): runs one command a line from its console.
# The root is that of this machine, read-only: a host has /run and /mnt of its own.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run LC_ALL=C.UTF-8
stty raw -echo
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for folder in /run /mnt /var/lib /dev/shm; do mkdir -p $folder; mount -t tmpfs tmpfs $folder; done
mkdir -p /run/lib /mnt/shared
ln -s /usr/lib/uml/modules /run/lib/modules
hostname "$NAME"
ip link set lo up
ip address add "$ADDRESS/24" dev eth0
ip link set eth0 up
while IFS= read -r command; do
  bash -c "$command" > /run/output 2>&1 < /dev/null
  echo "answer $? $(base64 --wrap=0 /run/output)"
done
