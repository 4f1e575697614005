// SPDX-License-Identifier: MIT OR GPL-2.0
// Functions whose sections say where they go, one whose section does not and that is left out, and one that is called.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

static __always_inline int hit(__u32 slot)
{
	__u64 *value = bpf_map_lookup_elem(&hits, &slot);
	if (value)
		__sync_fetch_and_add(value, 1);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_getppid")
int called(void *ctx) { return hit(1); }

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__array(values, int (void *));
} next SEC(".maps") = { .values = { [0] = (void *)&called } };

SEC("tracepoint/syscalls/sys_enter_getppid")
int on_getppid(void *ctx)
{
	hit(0);
	bpf_tail_call(ctx, &next, 0);
	return 0;
}

SEC("raw_tp/sys_enter")
int on_enter(void *ctx) { return hit(2); }

SEC("?xdp")
int on_packet(struct xdp_md *ctx)
{
	hit(3);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
