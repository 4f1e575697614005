/* A map of sockets that a program looks into. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} by_key SEC(".maps");

SEC("sk_lookup")
int look(struct bpf_sk_lookup *ctx)
{
	__u32 key = 0;
	struct bpf_sock *socket = bpf_map_lookup_elem(&sockets, &key);

	if (!socket)
		socket = bpf_map_lookup_elem(&by_key, &key);
	if (socket)
		bpf_sk_release(socket);
	return SK_PASS;
}

char _license[] SEC("license") = "GPL";
