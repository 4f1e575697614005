/* Kills one process when it has made so many calls that change something: files, directories, pins, links, maps. x86-64.
 *
 * The call that is counted last still runs: the signal is taken on the way back. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* 0: the process; 1: calls until it dies, 0 for never; 2: calls so far. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u64);
} control SEC(".maps");

/* struct pt_regs: where the first and the third argument of a call are. */
#define FIRST 112
#define THIRD 96
#define O_CREAT 0100

static __u64 argument(const void *registers, int offset)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), registers + offset);
	return value;
}

static int changes(const void *registers, __u64 call)
{
	switch (call) {
	case 257: /* openat */
		return argument(registers, THIRD) & O_CREAT;
	case 82: case 264: case 316: /* rename */
	case 87: case 263: case 84: /* unlink, rmdir */
	case 83: case 258: /* mkdir */
	case 74: case 75: case 77: /* fsync, fdatasync, ftruncate */
		return 1;
	case 321: /* bpf */
		switch (argument(registers, FIRST)) {
		case 2: case 3: case 6: /* map update, delete, pin */
		case 22: case 17: case 28: case 29: case 34: /* freeze; link: open, create, update, detach */
			return 1;
		}
	}
	return 0;
}

static __u64 *slot(__u32 key)
{
	return bpf_map_lookup_elem(&control, &key);
}

SEC("raw_tp/sys_enter")
int reap(__u64 *context)
{
	__u64 *process = slot(0), *left = slot(1), *calls = slot(2);

	if (!process || !left || !calls || bpf_get_current_pid_tgid() >> 32 != *process)
		return 0;
	if (!changes((const void *)context[0], context[1]))
		return 0;
	__sync_fetch_and_add(calls, 1);
	if (*left && __sync_fetch_and_add(left, -1) == 1)
		bpf_send_signal(9);
	return 0;
}

char _license[] SEC("license") = "GPL";
