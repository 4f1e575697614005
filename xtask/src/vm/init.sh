#!/bin/sh
# PID 1 of a test machine: mounts, modules, the tests, power off.
export PATH=/bin:/sbin HOME=/root SKEP_TEST_OBJECTS=/objects TMPDIR=/tmp SKEP_TEST_MUST_FIRE=1 SKEP_TEST_AGENT=/skep-agent SKEP_TEST_PLUGIN=/kubectl-skep
# The second serial line.
export SKEP_TEST_VERDICTS=/dev/ttyS1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /run/netns
# Before Linux 5.11 maps count as locked memory.
ulimit -l unlimited
for module in $(cat /modules/order); do insmod /modules/$module.ko || echo "no module $module"; done
ip link set lo up
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
echo "kernel $(uname -r)"
for tests in /tests/*; do RUST_BACKTRACE=0 $tests --test-threads=1 --show-output $(cat /arguments); done
echo "tests ended"
poweroff -f
