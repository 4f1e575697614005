// SPDX-License-Identifier: MIT OR GPL-2.0
// Maps whose keys and values are easily written wrong, one that is large, and records that come fast.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct prefix {
	__u32 length;
	__u8 address[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} routes SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 16);
	__type(value, __u32);
} queue SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, char[16]);
	__type(value, __u32);
} texts SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __s32);
	__type(value, __s64);
} deltas SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__type(key, __u32);
	__type(value, __u64[16]);
} large SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} records SEC(".maps");

/* What nobody refers to is not made. */
#define USE(name) asm volatile("" : : "r"(&name))

SEC("xdp")
int on_packet(struct xdp_md *ctx)
{
	__u64 number = bpf_ktime_get_ns();

	USE(routes); USE(queue); USE(texts); USE(deltas); USE(counts); USE(large);
	bpf_ringbuf_output(&records, &number, sizeof(number), 0);
	bpf_printk("packet of kinds");
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
