// SPDX-License-Identifier: MIT OR GPL-2.0
// The program of the benchmarks of looking in: maps with room for a million entries, and for a tenth of that.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define MAP(name_, type_, key_, entries_, flags_) \
	struct { \
		__uint(type, type_); \
		__uint(max_entries, entries_); \
		__uint(map_flags, flags_); \
		__type(key, key_); \
		__type(value, __u64); \
	} name_ SEC(".maps")

MAP(flows, BPF_MAP_TYPE_HASH, __u64, 1000000, 0);
MAP(slots, BPF_MAP_TYPE_ARRAY, __u32, 1000000, BPF_F_MMAPABLE);
MAP(plain_slots, BPF_MAP_TYPE_ARRAY, __u32, 1000000, 0);
MAP(cpu_flows, BPF_MAP_TYPE_PERCPU_HASH, __u64, 1000000, 0);
MAP(few, BPF_MAP_TYPE_HASH, __u64, 100000, 0);

SEC("xdp")
int count_xdp(struct xdp_md *ctx)
{
	/* No key that a benchmark writes: traffic must not change what is measured. */
	__u64 key = ~0ULL, *seen = bpf_map_lookup_elem(&flows, &key);
	if (seen)
		__sync_fetch_and_add(seen, 1);
	return XDP_PASS;
}

SEC("xdp")
int count_all(struct xdp_md *ctx)
{
	__u64 key = ~0ULL;
	__u32 slot = ~0U;
	void *seen[] = {
		bpf_map_lookup_elem(&flows, &key), bpf_map_lookup_elem(&cpu_flows, &key), bpf_map_lookup_elem(&few, &key),
		bpf_map_lookup_elem(&slots, &slot), bpf_map_lookup_elem(&plain_slots, &slot),
	};
	return seen[0] || seen[1] || seen[2] || seen[3] || seen[4] ? XDP_ABORTED : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
