// SPDX-License-Identifier: MIT OR GPL-2.0-only
// Tells of every started program by a record in a ring buffer, but for commands that somebody wrote into `ignored`.
#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct exec {
	__u32 pid;
	__u32 uid;
	__u64 cgroup;
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} execs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, char[16]);
	__type(value, bool);
} ignored SEC(".maps");

/* What the ring buffer had no room for. */
__u64 dropped;

/* A ring buffer has no type of its own: this keeps the record's in the object. */
const struct exec *record __attribute__((unused));

SEC("tracepoint/sched/sched_process_exec")
int log_exec(void *ctx)
{
	char comm[16] = {};
	struct exec *exec;
	bool *ignore;

	bpf_get_current_comm(comm, sizeof(comm));
	ignore = bpf_map_lookup_elem(&ignored, comm);
	if (ignore && *ignore)
		return 0;
	exec = bpf_ringbuf_reserve(&execs, sizeof(*exec), 0);
	if (!exec) {
		__sync_fetch_and_add(&dropped, 1);
		return 0;
	}
	exec->pid = bpf_get_current_pid_tgid() >> 32;
	exec->uid = bpf_get_current_uid_gid();
	exec->cgroup = bpf_get_current_cgroup_id();
	__builtin_memcpy(exec->comm, comm, sizeof(comm));
	bpf_ringbuf_submit(exec, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
