// SPDX-License-Identifier: MIT OR GPL-2.0
// Counters on what sockets in a map send and receive, and iterators, which write a line for each object. No function
// refers to the map of sockets.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

static __always_inline void hit(__u32 slot)
{
	__u64 *value = bpf_map_lookup_elem(&hits, &slot);
	if (value)
		__sync_fetch_and_add(value, 1);
}

SEC("sk_msg")
int on_message(struct sk_msg_md *msg)
{
	hit(0);
	return SK_PASS;
}

SEC("sk_skb/verdict")
int on_packet(struct __sk_buff *skb)
{
	hit(1);
	return SK_PASS;
}

SEC("sk_skb/stream_parser")
int on_measured(struct __sk_buff *skb)
{
	hit(2);
	return skb->len;
}

SEC("sk_skb/stream_verdict")
int on_stream(struct __sk_buff *skb)
{
	hit(3);
	return SK_PASS;
}

struct seq_file;
struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
} __attribute__((preserve_access_index));

struct bpf_map {
	__u32 id;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	void *value;
} __attribute__((preserve_access_index));

SEC("iter/bpf_map")
int on_maps(struct bpf_iter__bpf_map *ctx)
{
	static const char format[] = "map %u\n";
	struct bpf_map *map = ctx->map;
	if (!map)
		return 0;
	__u64 id = map->id;
	bpf_seq_printf(ctx->meta->seq, format, sizeof(format), &id, sizeof(id));
	hit(4);
	return 0;
}

SEC("iter/bpf_map_elem")
int on_elements(struct bpf_iter__bpf_map_elem *ctx)
{
	static const char format[] = "slot %u\n";
	__u32 *key = ctx->key;
	if (!key)
		return 0;
	__u64 slot = *key;
	bpf_seq_printf(ctx->meta->seq, format, sizeof(format), &slot, sizeof(slot));
	hit(5);
	return 0;
}

char _license[] SEC("license") = "GPL";
