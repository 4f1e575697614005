// SPDX-License-Identifier: MIT OR GPL-2.0
// A map of every type that can be read, and of every shape that values have: what the test fills with bytes of its own.
#define NO_FLOATS
#define NO_PROGRAM
#include "../../../object/tests/c/shapes.bpf.c"

#define MAP(name, kind, entries, key_type, value_type) \
	struct { \
		__uint(type, BPF_MAP_TYPE_##kind); \
		__uint(max_entries, entries); \
		__type(key, key_type); \
		__type(value, value_type); \
	} name SEC(".maps")
#define FLAGS(name, kind, entries, key_type, value_type, given) \
	struct { \
		__uint(type, BPF_MAP_TYPE_##kind); \
		__uint(max_entries, entries); \
		__uint(map_flags, given); \
		__type(key, key_type); \
		__type(value, value_type); \
	} name SEC(".maps")
#define KEYLESS(name, kind, entries, value_type) \
	struct { \
		__uint(type, BPF_MAP_TYPE_##kind); \
		__uint(max_entries, entries); \
		__type(value, value_type); \
	} name SEC(".maps")

struct mixed { __u8 a; __u64 b; __s16 c; struct point p; char name[6]; };
struct big { __u64 slots[64]; };
struct trie_key { __u32 prefixlen; __u32 address; };
union wrapped { struct { __u16 low, high; } parts; __u32 whole; };
struct deep { struct { struct { struct point p[2]; __u8 tail; } two[2]; } one; __s8 end; };
struct pointers { void *p; const char *q; struct point *r; };
struct wide { unsigned __int128 u; __int128 s; };
struct chars { char c; signed char s; unsigned char u; char text[9]; char grid[2][3]; };
struct enums { enum state s[3]; enum verdict v; };
enum huge { HUGE_LOW = 1, HUGE_HIGH = 0x8000000000000001ull };
struct huge_enum { enum huge h; };
struct ints { __u8 a; __s8 b; __u16 c; __s16 d; __u32 e; __s32 f; __u64 g; __s64 h; };

/* Types. */
MAP(a_hash, HASH, 64, struct point, struct mixed);
FLAGS(a_hash_made_late, HASH, 64, __u64, struct mixed, BPF_F_NO_PREALLOC);
MAP(an_lru, LRU_HASH, 64, __s32, struct nested);
MAP(an_array, ARRAY, 5, __u32, struct mixed);
FLAGS(a_mapped_array, ARRAY, 5, __u32, struct mixed, BPF_F_MMAPABLE);
MAP(a_percpu_hash, PERCPU_HASH, 16, enum state, struct mixed);
MAP(a_percpu_array, PERCPU_ARRAY, 3, __u32, struct ints);
MAP(a_percpu_lru, LRU_PERCPU_HASH, 16, __u32, __u32);
FLAGS(a_trie, LPM_TRIE, 16, struct trie_key, struct point, BPF_F_NO_PREALLOC);
KEYLESS(a_queue, QUEUE, 4, __u64);
KEYLESS(a_stack, STACK, 4, struct point);
MAP(a_devmap, DEVMAP, 8, __u32, __u32);
MAP(a_devmap_hash, DEVMAP_HASH, 8, __u32, struct bpf_devmap_val);
MAP(a_cpumap, CPUMAP, 4, __u32, struct bpf_cpumap_val);
MAP(a_sockmap, SOCKMAP, 4, __u32, __u64);
MAP(a_sockhash, SOCKHASH, 4, __u32, __u64);
MAP(a_program_array, PROG_ARRAY, 4, __u32, __u32);
MAP(a_reuseport, REUSEPORT_SOCKARRAY, 4, __u32, __u64);
MAP(a_cgroup_storage, CGROUP_STORAGE, 0, struct bpf_cgroup_storage_key, struct mixed);
MAP(a_percpu_cgroup_storage, PERCPU_CGROUP_STORAGE, 0, struct bpf_cgroup_storage_key, struct ints);

struct inner {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, struct point);
} inner_a SEC(".maps"), inner_b SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 3);
	__uint(key_size, 4);
	__array(values, struct inner);
} an_array_of_maps SEC(".maps") = { .values = { [0] = &inner_a, [2] = &inner_b } };
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4);
	__uint(key_size, 8);
	__array(values, struct inner);
} a_hash_of_maps SEC(".maps");

/* Shapes, by their structs. */
#define SHAPE(name, type) MAP(of_##name, ARRAY, 16, __u32, type)
SHAPE(point, struct point);
SHAPE(packed, struct packed);
SHAPE(nested, struct nested);
SHAPE(anonymous, struct anonymous);
SHAPE(either, union either);
SHAPE(variant, struct variant);
SHAPE(bits, struct bits);
SHAPE(across, struct across);
SHAPE(wide_bits, struct wide_bits);
SHAPE(holds_nothing, struct holds_nothing);
SHAPE(flexible, struct flexible);
SHAPE(mixed, struct mixed);
SHAPE(big, struct big);
SHAPE(wrapped, union wrapped);
SHAPE(deep, struct deep);
SHAPE(pointers, struct pointers);
SHAPE(wide, struct wide);
SHAPE(chars, struct chars);
SHAPE(enums, struct enums);
SHAPE(huge_enum, struct huge_enum);
SHAPE(ints, struct ints);
SHAPE(u8, __u8);
SHAPE(s8, __s8);
SHAPE(u16, __u16);
SHAPE(s16, __s16);
SHAPE(u32, __u32);
SHAPE(s32, __s32);
SHAPE(u64, __u64);
SHAPE(s64, __s64);
SHAPE(bool, _Bool);
SHAPE(typedef, packets_t);
SHAPE(state, enum state);

/* What nobody refers to is not made. */
#define USE(name) asm volatile("" : : "r"(&name))

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	USE(a_hash); USE(a_hash_made_late); USE(an_lru); USE(an_array); USE(a_mapped_array); USE(a_percpu_hash);
	USE(a_percpu_array); USE(a_percpu_lru); USE(a_trie); USE(a_queue); USE(a_stack); USE(a_devmap);
	USE(a_devmap_hash); USE(a_cpumap); USE(a_sockmap); USE(a_sockhash); USE(a_program_array); USE(a_reuseport);
	USE(inner_a); USE(inner_b); USE(an_array_of_maps); USE(a_hash_of_maps);
	USE(of_point); USE(of_packed); USE(of_nested); USE(of_anonymous); USE(of_either); USE(of_variant);
	USE(of_bits); USE(of_across); USE(of_wide_bits); USE(of_holds_nothing); USE(of_flexible); USE(of_mixed);
	USE(of_big); USE(of_wrapped); USE(of_deep); USE(of_pointers); USE(of_wide); USE(of_chars); USE(of_enums);
	USE(of_huge_enum); USE(of_ints); USE(of_u8); USE(of_s8); USE(of_u16); USE(of_s16); USE(of_u32); USE(of_s32);
	USE(of_u64); USE(of_s64); USE(of_bool); USE(of_typedef); USE(of_state);
	USE(unsigned_1);
	return XDP_PASS;
}

/* The kernel makes their entries when it is attached. */
SEC("cgroup_skb/egress")
int stores(struct __sk_buff *skb)
{
	struct mixed *own = bpf_get_local_storage(&a_cgroup_storage, 0);
	struct ints *of_cpu = bpf_get_local_storage(&a_percpu_cgroup_storage, 0);

	own->a += of_cpu->a;
	return 1;
}

char _license[] SEC("license") = "GPL";
