// SPDX-License-Identifier: MIT OR GPL-2.0
// What traces and replaces the function of `callee`.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

const volatile __u32 answer = 7;

static __always_inline int hit(__u32 slot)
{
	__u64 *value = bpf_map_lookup_elem(&hits, &slot);
	if (value)
		__sync_fetch_and_add(value, 1);
	return 0;
}

SEC("fentry")
int on_entry(__u64 *ctx) { return hit(0); }
SEC("fexit")
int on_exit(__u64 *ctx) { return hit(1); }
SEC("freplace")
int instead(int value)
{
	hit(2);
	return answer;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
