// SPDX-License-Identifier: MIT OR GPL-2.0
// Counters on tracing hooks; with `tgid` set, of one process only.
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
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

SEC("tracepoint/syscalls/sys_enter_getppid")
int on_tracepoint(void *ctx) { return hit(0); }
SEC("raw_tp/sys_enter")
int on_raw(void *ctx) { return hit(1); }
SEC("tp_btf/sys_enter")
int on_btf(__u64 *ctx) { return hit(2); }
SEC("uprobe")
int on_uprobe(void *ctx) { return hit(3); }
SEC("uretprobe")
int on_uretprobe(void *ctx) { return hit(4); }
SEC("kprobe/do_sys_openat2")
int on_kprobe(void *ctx) { return hit(5); }
SEC("kretprobe/do_sys_openat2")
int on_kretprobe(void *ctx) { return hit(6); }
#ifndef EVERYWHERE
SEC("fentry/do_sys_openat2")
int on_fentry(__u64 *ctx) { return hit(7); }
SEC("fexit/do_sys_openat2")
int on_fexit(__u64 *ctx) { return hit(8); }
SEC("fmod_ret/security_file_open")
int on_security(__u64 *ctx) { return hit(10); }
SEC("lsm/file_open")
int on_open(__u64 *ctx) { return hit(11); }
#endif

/* CO-RE: fields that lie elsewhere in every kernel. */
struct task_struct {
	int pid;
	int tgid;
	struct task_struct *group_leader;
} __attribute__((preserve_access_index));

SEC("raw_tp/sys_enter")
int on_core(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *leader = 0;
	int pid = 0;
	bpf_probe_read_kernel(&leader, sizeof(leader), &task->group_leader);
	bpf_probe_read_kernel(&pid, sizeof(pid), &leader->tgid);
	if (pid == bpf_get_current_pid_tgid() >> 32)
		return hit(9);
	return 0;
}

/* CO-RE: 32 bits wide here, 64 in the kernel. */
enum perf_callchain_context {
	PERF_CONTEXT_HV = 7,
};

SEC("raw_tp/sys_enter")
int on_enum(void *ctx)
{
	if (!bpf_core_enum_value_exists(enum perf_callchain_context, PERF_CONTEXT_HV))
		return 0;
	return (int)bpf_core_enum_value(enum perf_callchain_context, PERF_CONTEXT_HV) == -32 ? hit(12) : 0;
}

/* CO-RE: a field of another size in some kernels, which is asked for before. */
struct task_struct___wide {
	long pid;
} __attribute__((preserve_access_index));

SEC("raw_tp/sys_enter")
int on_sized(void *ctx)
{
	struct task_struct___wide *task = (void *)bpf_get_current_task();
	if (bpf_core_field_size(task->pid) == sizeof(long))
		return task->pid;
	return hit(13);
}

#ifndef EVERYWHERE
/* Refused by the verifier: reads through an unchecked pointer. */
SEC("raw_tp/sys_enter")
int on_bad(void *ctx)
{
	/* Not a constant: newer verifiers know that an array has its constant slots. */
	__u32 slot = bpf_get_smp_processor_id();
	__u64 *value = bpf_map_lookup_elem(&hits, &slot);
	return (int)*value;
}
#endif

char _license[] SEC("license") = "GPL";
