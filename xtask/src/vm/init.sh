#!/bin/sh
# PID 1 of a test machine: mounts, modules, the tests, power off.
export PATH=/bin:/sbin HOME=/root SKEP_TEST_OBJECTS=/objects TMPDIR=/tmp SKEP_TEST_MUST_FIRE=1 SKEP_TEST_AGENT=/skep-agent SKEP_TEST_PLUGIN=/kubectl-skep
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /run/netns
for module in $(cat /modules/order); do insmod /modules/$module.ko || echo "no module $module"; done
ip link set lo up
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
echo "kernel $(uname -r)"
RUST_BACKTRACE=0 /tests --test-threads=1 $(cat /arguments)
RUST_BACKTRACE=0 /agent-tests --test-threads=1 $(cat /arguments)
RUST_BACKTRACE=0 /same-tests --test-threads=1 $(cat /arguments)
RUST_BACKTRACE=0 /verbs-tests --test-threads=1 $(cat /arguments)
echo "tests ended with $?"
poweroff -f
