// SPDX-License-Identifier: MIT OR GPL-2.0
// Every kind of CO-RE relocation that the loader knows, on structs of our own. With KERNEL they are laid out otherwise.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

#ifdef KERNEL
enum state { BUSY = 9, IDLE };
#else
enum state { IDLE, BUSY = 7 };
#endif

struct inner {
#ifdef KERNEL
	long before;
#endif
	int first;
	union {
		long second;
		struct {
			short third, fourth[3];
		};
	};
};

struct outer {
	struct inner *pointer;
#ifdef KERNEL
	unsigned short added : 5;
#endif
	struct inner nested[4];
	unsigned low : 3, high : 11;
	int below : 9;
	enum state state;
	char flexible[];
};

/* No kernel has flavours. */
#ifndef KERNEL
struct outer___flavour {
	long elsewhere;
	struct inner nested[2];
};
#endif

typedef struct {
	struct outer *outer;
	enum state state;
} named;

#pragma clang attribute pop

long seen;

SEC("raw_tp/reads")
int reads(struct outer *outer)
{
	struct inner *inner = BPF_CORE_READ(outer, pointer);

	seen += BPF_CORE_READ(inner, second) + BPF_CORE_READ(inner, fourth[2]) + BPF_CORE_READ(outer, nested[3].third);
	seen += BPF_CORE_READ(outer, flexible[5]);
	seen += BPF_CORE_READ_BITFIELD_PROBED(outer, high) + BPF_CORE_READ_BITFIELD_PROBED(outer, below);
	return 0;
}

SEC("tp_btf/direct")
int direct(struct outer *outer)
{
	outer->nested[1].first = 7;
	outer->state = BUSY;
	return outer->nested[2].first + outer->high + BPF_CORE_READ_BITFIELD(outer, below);
}

SEC("raw_tp/asks")
int asks(struct outer *outer)
{
#ifndef KERNEL
	struct outer___flavour *other = (void *)outer;

	if (bpf_core_field_exists(other->elsewhere))
		seen += BPF_CORE_READ(other, elsewhere);
#endif
	seen += bpf_core_field_size(outer->nested) + bpf_core_type_exists(struct inner) + bpf_core_type_size(named);
	seen += bpf_core_type_id_local(struct inner) + bpf_core_type_id_kernel(struct outer);
	seen += bpf_core_enum_value(enum state, BUSY) + bpf_core_enum_value_exists(enum state, IDLE);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
