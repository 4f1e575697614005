// SPDX-License-Identifier: MIT OR GPL-2.0
// Writes records for user space: into a ring buffer, of which every fifth is thought better of, and into a perf event
// array. Counts what did not fit.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct event {
	__u32 number;
	char name[12];
	__u64 twice;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
} perf SEC(".maps");

__u32 next;
__u64 dropped;
/* Keeps the type in the object's BTF. */
const struct event *unused __attribute__((unused));

static __always_inline int write_ring(void)
{
	struct event *event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);
	__u32 number = next++;

	if (!event) {
		__sync_fetch_and_add(&dropped, 1);
		return 1;
	}
	event->number = number;
	event->twice = 2 * (__u64)number;
	__builtin_memcpy(event->name, "ring", 5);
	if (number % 5 == 4)
		bpf_ringbuf_discard(event, 0);
	else
		bpf_ringbuf_submit(event, 0);
	return 0;
}

SEC("raw_tp/sys_enter")
int to_ring(void *ctx)
{
	return write_ring();
}

SEC("xdp")
int packet_to_ring(struct xdp_md *ctx)
{
	write_ring();
	return XDP_PASS;
}

static __always_inline int write_perf(void *ctx)
{
	struct event event = { .name = "perf" };

	event.number = next++;
	event.twice = 2 * (__u64)event.number;
	return bpf_perf_event_output(ctx, &perf, BPF_F_CURRENT_CPU, &event, sizeof(event)) != 0;
}

SEC("raw_tp/sys_enter")
int to_perf(void *ctx)
{
	return write_perf(ctx);
}

SEC("xdp")
int packet_to_perf(struct xdp_md *ctx)
{
	write_perf(ctx);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
