// SPDX-License-Identifier: MIT OR GPL-2.0
// The program of the load benchmark: one map, a dozen instructions.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

SEC("cgroup_skb/egress")
int count(struct __sk_buff *skb)
{
	__u32 key = skb->protocol;
	__u64 one = 1, *seen = bpf_map_lookup_elem(&counts, &key);
	if (seen)
		__sync_fetch_and_add(seen, 1);
	else
		bpf_map_update_elem(&counts, &key, &one, BPF_ANY);
	return 1;
}

char _license[] SEC("license") = "GPL";
