// SPDX-License-Identifier: MIT OR GPL-2.0
// Counters on what processes of a cgroup do, one slot of `hits` each. All of it is allowed.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

#define COUNTER(name, section, context, slot) \
	SEC(section) \
	int name(struct context *ctx) \
	{ \
		__u32 key = slot; \
		__u64 *value = bpf_map_lookup_elem(&hits, &key); \
		if (value) \
			__sync_fetch_and_add(value, 1); \
		return 1; \
	}

COUNTER(on_create, "cgroup/sock_create", bpf_sock, 0)
COUNTER(on_release, "cgroup/sock_release", bpf_sock, 1)
COUNTER(on_bind4, "cgroup/post_bind4", bpf_sock, 2)
COUNTER(on_bind6, "cgroup/post_bind6", bpf_sock, 3)
COUNTER(on_get, "cgroup/getsockopt", bpf_sockopt, 4)
COUNTER(on_set, "cgroup/setsockopt", bpf_sockopt, 5)
COUNTER(on_sysctl, "cgroup/sysctl", bpf_sysctl, 6)
COUNTER(on_device, "cgroup/dev", bpf_cgroup_dev_ctx, 7)
COUNTER(on_tcp, "sockops", bpf_sock_ops, 8)
COUNTER(on_unix, "cgroup/connect_unix", bpf_sock_addr, 9)

char _license[] SEC("license") = "GPL";
