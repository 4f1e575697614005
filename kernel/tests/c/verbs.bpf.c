// SPDX-License-Identifier: MIT OR GPL-2.0
// What is written for it and what it writes: a user ring buffer, a full ring buffer with its counter, text, a fault.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum op { ADD = 1, RESET };
struct command {
	enum op op;
	__u32 amount;
};
struct event {
	__u64 number;
	__u64 payload[14];
};

struct {
	__uint(type, BPF_MAP_TYPE_USER_RINGBUF);
	__uint(max_entries, 4096);
} commands SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 64);
	__type(value, __u64);
} waiting SEC(".maps");

__u64 dropped, packets, total;
const struct event *event_type __attribute__((unused));
const struct command *command_type __attribute__((unused));

static __attribute__((noinline)) long apply(struct bpf_dynptr *record, void *context)
{
	const struct command *command = bpf_dynptr_data(record, 0, sizeof(*command));
	if (!command)
		return 0;
	if (command->op == ADD)
		total += command->amount;
	else
		total = 0;
	return 0;
}

SEC("xdp")
int on_packet(struct xdp_md *ctx)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	__u32 key = packets % 1024;
	__u64 number = packets++;
	if (event) {
		__builtin_memset(event, 0, sizeof(*event));
		event->number = number;
		bpf_ringbuf_submit(event, 0);
	} else {
		__sync_fetch_and_add(&dropped, 1);
	}
	bpf_map_update_elem(&seen, &key, &number, BPF_ANY);
	bpf_map_push_elem(&waiting, &number, 0);
	bpf_user_ringbuf_drain(&commands, apply, 0, 0);
	bpf_printk("packet %llu of verbs", number);
	return XDP_PASS;
}

SEC("raw_tp/sys_enter")
int on_arguments(struct bpf_raw_tracepoint_args *ctx)
{
	return ctx->args[1] == 7 ? 70 : 0;
}

char _license[] SEC("license") = "GPL";
