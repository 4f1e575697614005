// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Drops UDP packets to one port and counts them, by source address. Any other packet passes.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Set before the load by spec.globals; 0 drops nothing. */
const volatile __u16 port = 0;

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __be32);
	__type(value, __u64);
} dropped SEC(".maps");

SEC("xdp")
int drop_udp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp;
	__u64 one = 1, *count;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	udp = (void *)ip + ip->ihl * 4;
	if ((void *)(udp + 1) > end || !port || udp->dest != bpf_htons(port))
		return XDP_PASS;

	count = bpf_map_lookup_elem(&dropped, &ip->saddr);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&dropped, &ip->saddr, &one, BPF_ANY);
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
