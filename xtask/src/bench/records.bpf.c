// SPDX-License-Identifier: MIT OR GPL-2.0
// Writes a record of 64 bytes for each packet, and counts those that did not fit.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct record {
	__u64 number;
	__u64 words[7];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 << 20);
} records SEC(".maps");

__u64 number, dropped;

SEC("tcx/ingress")
int emit(struct __sk_buff *skb)
{
	struct record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	__u64 next = number++;

	if (!record) {
		__sync_fetch_and_add(&dropped, 1);
		return -1;
	}
	record->number = next;
	for (int i = 0; i < 7; i++)
		record->words[i] = next + i;
	bpf_ringbuf_submit(record, 0);
	return -1;
}

char _license[] SEC("license") = "GPL";
