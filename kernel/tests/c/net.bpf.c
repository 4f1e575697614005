// SPDX-License-Identifier: MIT OR GPL-2.0
// Counters on network hooks, one slot of `hits` each.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

struct flow {
	__u32 source;
	__u16 port;
	__u8 protocol;
};
struct count {
	__u64 packets;
	__u64 bytes;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct flow);
	__type(value, struct count);
} flows SEC(".maps");

const volatile __u32 step = 1;
__u64 total;

static __noinline int hit(__u32 slot)
{
	__u64 *value = bpf_map_lookup_elem(&hits, &slot);
	if (value)
		__sync_fetch_and_add(value, step);
	__sync_fetch_and_add(&total, 1);
	return 0;
}

SEC("xdp")
int count_xdp(struct xdp_md *ctx)
{
	struct flow key = { .source = ctx->ingress_ifindex, .port = 7, .protocol = 17 };
	struct count one = { .packets = 1, .bytes = ctx->data_end - ctx->data };
	struct count *seen = bpf_map_lookup_elem(&flows, &key);
	if (seen)
		__sync_fetch_and_add(&seen->packets, 1);
	else
		bpf_map_update_elem(&flows, &key, &one, BPF_ANY);
	hit(0);
	return XDP_PASS;
}

SEC("tc")
int count_tc(struct __sk_buff *skb)
{
	hit(1);
	return -1; /* TCX_NEXT */
}

SEC("cgroup_skb/egress")
int count_cgroup(struct __sk_buff *skb)
{
	hit(2);
	return 1;
}

SEC("cgroup/connect4")
int count_connect(struct bpf_sock_addr *ctx)
{
	hit(3);
	return 1;
}

SEC("sk_lookup")
int count_lookup(struct bpf_sk_lookup *ctx)
{
	hit(4);
	return SK_PASS;
}

/* 1: NF_ACCEPT; 0: NF_DROP. */
const volatile __u32 verdict = 1;

SEC("netfilter")
int count_netfilter(void *ctx)
{
	hit(5);
	return verdict ? 1 : 0;
}

/* 0: BPF_OK. */
SEC("flow_dissector")
int count_dissected(struct __sk_buff *skb)
{
	hit(6);
	return 0;
}

/* A section that no loader knows must not matter to the programs beside it. */
SEC("no_such_kind/at_all")
int unknown(void *ctx)
{
	return 0;
}

char _license[] SEC("license") = "GPL";
