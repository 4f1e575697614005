// SPDX-License-Identifier: MIT OR GPL-2.0
// Maps of every type whose contents can move to another size, counted by one program.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#ifndef LAYOUT
struct value {
	__u64 packets;
	__u32 halves[2];
};
#else
struct value {
	__u64 packets;
	__u64 bytes;
};
#endif

struct prefix {
	__u32 length;
	__u32 address;
};

const volatile __u32 keys = 16;
const volatile __u32 first = 0;

#define MAP(kind, keytype)                       \
	struct {                                 \
		__uint(type, BPF_MAP_TYPE_##kind); \
		__type(key, keytype);            \
		__type(value, struct value);     \
		__uint(max_entries, 64);         \
	}

MAP(HASH, __u32) hash SEC(".maps");
MAP(ARRAY, __u32) array SEC(".maps");
MAP(PERCPU_HASH, __u32) percpu_hash SEC(".maps");
MAP(PERCPU_ARRAY, __u32) percpu_array SEC(".maps");
MAP(LRU_HASH, __u32) lru SEC(".maps");
MAP(LRU_PERCPU_HASH, __u32) lru_percpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix);
	__type(value, struct value);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} trie SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
	__uint(max_entries, 64);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__type(key, __u32);
	__type(value, struct bpf_cpumap_val);
	__uint(max_entries, 64);
} cpus SEC(".maps");

struct timed {
	struct bpf_timer timer;
	__u64 packets;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct timed);
	__uint(max_entries, 64);
} timers SEC(".maps");

static __always_inline void count(void *map, void *key)
{
	struct value zero = {}, *value = bpf_map_lookup_elem(map, key);

	if (!value) {
		bpf_map_update_elem(map, key, &zero, BPF_NOEXIST);
		value = bpf_map_lookup_elem(map, key);
	}
	if (value)
		__sync_fetch_and_add(&value->packets, 1);
}

__u64 runs;

SEC("xdp")
int count_all(struct xdp_md *ctx)
{
	__u32 key = first + (__sync_fetch_and_add(&runs, 1) % keys);
	struct prefix prefix = {.length = 32, .address = key};

	count(&hash, &key);
	count(&array, &key);
	count(&percpu_hash, &key);
	count(&percpu_array, &key);
	count(&lru, &key);
	count(&lru_percpu, &key);
	count(&trie, &prefix);
	bpf_map_lookup_elem(&devices, &key);
	bpf_redirect_map(&cpus, 1000, XDP_PASS);
	bpf_map_lookup_elem(&timers, &key);
	return XDP_PASS;
}
