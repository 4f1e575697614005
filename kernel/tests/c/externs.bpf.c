// SPDX-License-Identifier: MIT OR GPL-2.0
// What the kernel defines: its configuration, its functions and its variables.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct rq {
	int cpu;
} __attribute__((preserve_access_index));

extern const volatile __u32 LINUX_KERNEL_VERSION __kconfig;
extern const volatile _Bool LINUX_HAS_BPF_COOKIE __kconfig;
extern const volatile int CONFIG_HZ __kconfig;
extern const volatile char CONFIG_DEFAULT_HOSTNAME[12] __kconfig;
extern const volatile enum libbpf_tristate CONFIG_BPF_JIT __kconfig;
extern const volatile char CONFIG_BPF_SYSCALL __kconfig;
extern const volatile int CONFIG_SKEP_IS_NOT_THERE __kconfig __weak;
extern const volatile int LINUX_SKEP_IS_NOT_THERE __kconfig __weak;

extern const struct rq runqueues __ksym;
extern const int skep_no_such_variable __ksym __weak;
extern const void bpf_prog_put __ksym;
extern const void skep_no_such_symbol __ksym __weak;
// Since Linux 6.4.
extern int bpf_dynptr_from_skb(struct __sk_buff *skb, __u64 flags, struct bpf_dynptr *ptr) __ksym __weak;
// Of the same function, but with types that it never had.
extern void *bpf_dynptr_from_skb___other(int a) __ksym __weak;
extern int skep_no_such_function(int a, int b) __ksym __weak;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

static __always_inline void set(__u32 slot, __u64 value)
{
	bpf_map_update_elem(&hits, &slot, &value, 0);
}

SEC("tc")
int on_config(struct __sk_buff *skb)
{
	set(0, LINUX_KERNEL_VERSION);
	set(1, CONFIG_HZ);
	set(2, CONFIG_DEFAULT_HOSTNAME[0] << 8 | CONFIG_DEFAULT_HOSTNAME[6]);
	set(3, CONFIG_BPF_JIT);
	set(4, CONFIG_BPF_SYSCALL);
	set(5, 7 + CONFIG_SKEP_IS_NOT_THERE + LINUX_SKEP_IS_NOT_THERE);
	set(6, LINUX_HAS_BPF_COOKIE);
	return 0;
}

// With a subprogram, so that what refers to the kernel does not stand in the first function alone.
static __noinline __u64 symbols(void)
{
	set(9, &skep_no_such_variable == 0 && &skep_no_such_symbol == 0);
	return (__u64)&bpf_prog_put;
}

SEC("tc")
int on_symbols(struct __sk_buff *skb)
{
	set(8, symbols());
	return 0;
}

SEC("tc")
int on_functions(struct __sk_buff *skb)
{
	struct bpf_dynptr packet;
	__u64 length = 99;

	if (bpf_dynptr_from_skb___other)
		bpf_dynptr_from_skb___other(1);
	if (skep_no_such_function)
		length = skep_no_such_function(1, 2);
	else if (!bpf_dynptr_from_skb)
		length = 98;
	else if (!bpf_dynptr_from_skb(skb, 0, &packet))
		length = skb->len;
	set(12, length);
	return 0;
}
#ifndef EVERYWHERE
// Of a kernel with CONFIG_KALLSYMS_ALL.
SEC("tc")
int on_variable(struct __sk_buff *skb)
{
	const struct rq *second = bpf_per_cpu_ptr(&runqueues, 1);

	set(11, second ? second->cpu : 99);
	return 0;
}

// Of the module nf_conntrack.
struct nf_conn {
	int unused;
};
struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};
extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple_size,
					 struct bpf_ct_opts *opts, __u32 opts_size) __ksym;
extern void bpf_ct_release(struct nf_conn *conn) __ksym;

SEC("tc")
int on_connection(struct __sk_buff *skb)
{
	struct bpf_ct_opts opts = { .netns_id = -1, .l4proto = 6 };
	struct bpf_sock_tuple tuple = {};
	struct nf_conn *conn = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts));

	if (conn)
		bpf_ct_release(conn);
	set(13, -opts.error);
	return 0;
}

// Of the module veth.
SEC("fentry/veth_xmit")
int on_module(__u64 *ctx)
{
	set(14, 1);
	return 0;
}

extern const volatile int CONFIG_SKEP_MUST_BE_THERE __kconfig;
extern int skep_must_be_there(int a) __ksym;
extern int undeclared(int a);

SEC("tc")
int on_missing_config(struct __sk_buff *skb) { return CONFIG_SKEP_MUST_BE_THERE; }
SEC("tc")
int on_missing_function(struct __sk_buff *skb) { return skep_must_be_there(1); }
SEC("tc")
int on_undeclared(struct __sk_buff *skb) { return undeclared(1); }
#endif

char LICENSE[] SEC("license") = "Dual MIT/GPL";
