// SPDX-License-Identifier: MIT OR GPL-2.0
// The program of the dump benchmark: a hash with room for a million flows.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1000000);
	__type(key, __u64);
	__type(value, __u64);
} flows SEC(".maps");

SEC("xdp")
int count_xdp(struct xdp_md *ctx)
{
	/* No key that the benchmark writes: traffic must not change what is measured. */
	__u64 key = ~0ULL, *seen = bpf_map_lookup_elem(&flows, &key);
	if (seen)
		__sync_fetch_and_add(seen, 1);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
