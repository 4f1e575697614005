// SPDX-License-Identifier: MIT OR GPL-2.0
// Maps whose entries belong to tasks, sockets, cgroups and inodes.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct pair {
	__u32 first, second;
};

/* BPF_MAP_TYPE_CGRP_STORAGE, which older headers have not. */
#define CGRP_STORAGE 32
#define STORAGE(name, kind) \
	struct { \
		__uint(type, kind); \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__type(key, int); \
		__type(value, struct pair); \
	} name SEC(".maps")

STORAGE(of_tasks, BPF_MAP_TYPE_TASK_STORAGE);
STORAGE(of_sockets, BPF_MAP_TYPE_SK_STORAGE);
STORAGE(of_inodes, BPF_MAP_TYPE_INODE_STORAGE);
STORAGE(of_cgroups, CGRP_STORAGE);

#define USE(name) asm volatile("" : : "r"(&name))

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	USE(of_tasks);
	USE(of_sockets);
	USE(of_inodes);
	USE(of_cgroups);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
