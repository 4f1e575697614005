// SPDX-License-Identifier: MIT OR GPL-2.0
// Maps of maps and program arrays with initial entries.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} first SEC(".maps"), second SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps") = { .values = { [1] = &first, [3] = &second } };

int tail(struct __sk_buff *skb);
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, 4);
	__array(values, int(void *));
} jumps SEC(".maps") = { .values = { [1] = (void *)&tail } };

SEC("tc")
int entry(struct __sk_buff *skb)
{
	__u32 slot = 3, index = 0;
	void *map = bpf_map_lookup_elem(&outer, &slot);
	if (map) {
		__u64 *value = bpf_map_lookup_elem(map, &index);
		if (value)
			__sync_fetch_and_add(value, 1);
	}
	bpf_tail_call(skb, &jumps, 1);
	return 1;
}

SEC("tc")
int tail(struct __sk_buff *skb)
{
	return 42;
}

char _license[] SEC("license") = "GPL";
