// SPDX-License-Identifier: MIT OR GPL-2.0
// A program with a function that others trace and replace: see `tracer`.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 answer = 1;

__noinline int check(int value)
{
	asm volatile("" : "+r"(value));
	return value;
}

SEC("tc")
int guard(struct __sk_buff *skb) { return check(answer); }

char LICENSE[] SEC("license") = "Dual MIT/GPL";
