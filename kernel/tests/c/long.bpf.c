// SPDX-License-Identifier: MIT OR GPL-2.0
// A program of more instructions than anybody sends at once.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int many(struct xdp_md *ctx)
{
	asm volatile(".rept 40000; r1 = 1; .endr" ::: "r1");
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
