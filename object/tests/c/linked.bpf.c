// SPDX-License-Identifier: MIT OR GPL-2.0
// What linking has to follow: maps of all definitions, program arrays, subprograms, callbacks, data sections.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct key {
	__u32 address;
	__u16 port;
};

struct inner_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} inner_one SEC(".maps"), inner_two SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 8);
	__type(key, __u32);
	__array(values, struct inner_map);
} outer_map SEC(".maps") = { .values = { [1] = &inner_one, [3] = &inner_two } };

int last(struct xdp_md *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, 4);
	__array(values, int(struct xdp_md *));
} jumps SEC(".maps") = { .values = { [1] = &last } };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 64);
	__uint(map_flags, 1);
	__uint(pinning, 1);
	__type(key, struct key);
	__type(value, long[3]);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} records SEC(".maps");

struct bpf_map_def {
	unsigned type, key_size, value_size, max_entries, map_flags;
};

struct bpf_map_def SEC("maps") legacy = { BPF_MAP_TYPE_ARRAY, 4, 8, 3, 0 };

const volatile int limit = 3;
static long total;
struct key home = { 0x7f000001, 80 };

static __attribute__((noinline)) int step(__u32 i, long *sum)
{
	*sum += i;
	return *sum > limit;
}

__attribute__((noinline)) int twice(int n)
{
	long sum = 0;

	bpf_loop(n, step, &sum, 0);
	return sum;
}

SEC("xdp")
int first(struct xdp_md *ctx)
{
	__u32 zero = 0;
	long *count = bpf_map_lookup_elem(&counts, &home);
	long *old = bpf_map_lookup_elem(&legacy, &zero);
	void *inner = bpf_map_lookup_elem(&outer_map, &zero);

	if (count && old)
		count[1] += *old + twice(2);
	if (inner)
		bpf_map_lookup_elem(inner, &zero);
	total += step(1, &total);
	bpf_ringbuf_output(&records, &home, sizeof(home), 0);
	bpf_tail_call(ctx, &jumps, 1);
	return XDP_PASS;
}

SEC("xdp/last")
int last(struct xdp_md *ctx)
{
	return twice(ctx->rx_queue_index) ? XDP_PASS : XDP_DROP;
}

char LICENSE[] SEC("license") = "GPL";
