// SPDX-License-Identifier: MIT OR GPL-2.0
// Counters on hooks that take many functions at once, on system calls, counters of CPUs, and security hooks of cgroups;
// with `tgid` set, of one process only.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

const volatile __u32 tgid;

static __always_inline int hit(__u32 slot)
{
	__u64 *value;
	if (tgid && bpf_get_current_pid_tgid() >> 32 != tgid)
		return 0;
	value = bpf_map_lookup_elem(&hits, &slot);
	if (value)
		__sync_fetch_and_add(value, 1);
	return 0;
}

SEC("kprobe.multi/do_sys_openat*")
int on_kernel_entries(void *ctx) { return hit(0); }
SEC("kretprobe.multi/do_sys_openat*")
int on_kernel_returns(void *ctx) { return hit(1); }
SEC("kprobe.session/do_sys_openat*")
int on_kernel_session(void *ctx) { return hit(2); }
SEC("ksyscall/getppid")
int on_syscall(void *ctx) { return hit(3); }
SEC("kretsyscall/getppid")
int on_syscall_return(void *ctx) { return hit(4); }
SEC("uprobe.multi")
int on_entries(void *ctx) { return hit(5); }
SEC("uretprobe.multi")
int on_returns(void *ctx) { return hit(6); }
SEC("uprobe.session")
int on_session(void *ctx) { return hit(7); }
SEC("perf_event")
int on_sample(void *ctx) { return hit(8); }

/* Writes what it reads: only a program of the writable type may. */
SEC("raw_tp.w/bpf_test_finish")
int on_writable(__u64 *ctx)
{
	volatile int *error = (volatile int *)ctx[0];
	*error = *error;
	return hit(9);
}

/* 1: allowed. */
SEC("lsm_cgroup/socket_create")
int on_socket(__u64 *ctx)
{
	hit(10);
	return 1;
}

SEC("netkit/primary")
int on_netkit(void *ctx)
{
	__u32 slot = 11;
	__u64 *value = bpf_map_lookup_elem(&hits, &slot);
	if (value)
		__sync_fetch_and_add(value, 1);
	/* NETKIT_NEXT: go on. */
	return -1;
}

char _license[] SEC("license") = "GPL";
