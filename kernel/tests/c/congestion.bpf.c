// SPDX-License-Identifier: MIT OR GPL-2.0
// A TCP congestion control, as far as the kernel insists on one.
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

struct sock;

/* Members are found by their names. */
struct tcp_congestion_ops {
	__u32 (*ssthresh)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, __u32 ack, __u32 acked);
	__u32 (*undo_cwnd)(struct sock *sk);
	char name[16];
};

SEC("struct_ops/skep_ssthresh")
__u32 skep_ssthresh(unsigned long long *ctx)
{
	return 10;
}

SEC("struct_ops/skep_cong_avoid")
void skep_cong_avoid(unsigned long long *ctx)
{
}

SEC("struct_ops/skep_undo_cwnd")
__u32 skep_undo_cwnd(unsigned long long *ctx)
{
	return 10;
}

SEC(".struct_ops")
struct tcp_congestion_ops skep_reno = {
	.ssthresh = (void *)skep_ssthresh,
	.cong_avoid = (void *)skep_cong_avoid,
	.undo_cwnd = (void *)skep_undo_cwnd,
	.name = "skep_reno",
};

char _license[] SEC("license") = "GPL";
