// SPDX-License-Identifier: MIT OR GPL-2.0
// Maps with the names of Skep's own directories, and two whose names differ behind what the kernel keeps of them.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define COUNTER(name) \
	struct { \
		__uint(type, BPF_MAP_TYPE_ARRAY); \
		__uint(max_entries, 1); \
		__type(key, __u32); \
		__type(value, __u64); \
	} name SEC(".maps")

COUNTER(maps);
COUNTER(shares);
COUNTER(progs);
COUNTER(links);
COUNTER(connection_table_a);
COUNTER(connection_table_b);

static __always_inline void add(void *map, __u64 more)
{
	__u32 slot = 0;
	__u64 *value = bpf_map_lookup_elem(map, &slot);
	if (value)
		__sync_fetch_and_add(value, more);
}

SEC("tc")
int count_names(struct __sk_buff *skb)
{
	add(&maps, 1);
	add(&shares, 1);
	add(&progs, 1);
	add(&links, 1);
	add(&connection_table_a, 1);
	add(&connection_table_b, 2);
	return -1; /* TCX_NEXT */
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
