// SPDX-License-Identifier: MIT OR GPL-2.0
// A counter on each CPU, under a key with text in it.
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct where {
	__u8 label[8];
	__u8 mac[6];
	__u8 peer[6] __attribute__((btf_decl_tag("mac")));
	struct in_addr address;
	__be16 port;
};
struct count {
	__u64 packets;
	__u32 slots[2];
	_Bool seen;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16);
	__type(key, struct where);
	__type(value, struct count);
} counts SEC(".maps");

SEC("xdp")
int count_xdp(struct xdp_md *ctx)
{
	struct where key = {
		.label = "lo", .mac = { 2, 0, 0, 0, 0, 1 }, .peer = { 2, 0, 0, 0, 0, 2 },
		.address = { bpf_htonl(0x0a000001) }, .port = bpf_htons(443),
	};
	struct count one = { .packets = 1, .slots = { 1, 2 }, .seen = 1 };
	struct count *seen = bpf_map_lookup_elem(&counts, &key);
	if (seen) {
		seen->packets += 1;
		seen->slots[0] += 1;
		seen->slots[1] += 2;
		seen->seen = 1;
	} else {
		bpf_map_update_elem(&counts, &key, &one, BPF_ANY);
	}
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
