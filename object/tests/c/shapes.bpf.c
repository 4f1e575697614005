// SPDX-License-Identifier: MIT OR GPL-2.0
// One variable for each shape that values have; what it holds is what golden/shapes.json shows.
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define __tag(x) __attribute__((btf_decl_tag(x)))
#define __packed __attribute__((packed))

/* Integers. */
__u8 unsigned_1 = 255;
__s8 signed_1 = -128;
__u16 unsigned_2 = 65535;
__s16 signed_2 = -2;
__u32 unsigned_4 = 4294967295;
__s32 signed_4 = -2147483647 - 1;
__u64 unsigned_8 = 18446744073709551615ull;
__s64 signed_8 = -9007199254740993ll;
unsigned __int128 unsigned_16 = ((unsigned __int128)1 << 127) + 1;
__int128 signed_16 = -5;
_Bool truth = 1;
char letter = 'a';
typedef volatile __u32 counter_t;
typedef counter_t packets_t;
packets_t through_typedefs = 7;

/* Floats. bpftool's output ends at the first. */
#ifndef NO_FLOATS
float single = 0.1f;
double twice = -1e300;
double infinite = __builtin_inf();
double no_number = __builtin_nan("");
#endif

/* Pointers: what they point at is the kernel's. */
void *pointer = (void *)0xffff888012345678;

/* Enums. */
enum state { CLOSED, OPEN = 5, LAST = 0x7fffffff };
enum state known_state = OPEN, unknown_state = 3;
enum verdict { DENY = -1, PASS };
enum verdict negative_value = DENY;
enum __packed { SMALL_A = 1, SMALL_B = 200 } small_enum = SMALL_B;

/* Arrays. */
__u16 list[3] = { 80, 443 };
__u32 grid[2][3] = { { 1, 2, 3 }, { 4, 5, 6 } };
char text[8] = "eth0";
char full_text[4] = { 'f', 'u', 'l', 'l' };
char after_text[8] = "ab\0left";
char no_utf8[8] = "a\xff\\x41";
char texts[2][4] = { "lo", "br0" };
__u8 octets[4] = { 1, 2, 3, 4 };
_Bool truths[2] = { 0, 1 };
struct holds_nothing { struct empty {} nothing[3]; __u8 n; } holds_nothing = { {}, 1 };

/* Structs. */
struct point { __u8 x; __u32 y; };
struct point padded = { 1, 2 };
struct __packed packed { __u8 a; __u32 b; __u16 c; } packed = { 1, 2, 3 };
struct nested { struct point from, to; struct point path[2]; } nested = { { 1, 2 }, { 3, 4 }, { { 5, 6 }, { 7, 8 } } };
struct anonymous { __u32 a; struct { __u32 b; union { __u32 c; __u16 d; }; }; } anonymous = { 1, { 2, { 0x10003 } } };
union either { __u32 whole; __u16 halves[2]; __u8 quarters[4]; } either = { 0x04030201 };
struct variant { __u32 kind; union { struct point at; __u64 number; } as; } variant = { 1, { { 2, 3 } } };

/* Bit fields. */
struct bits { __u32 a : 3, b : 5; __s32 c : 4; __u32 : 4, d : 16; } bits = { 5, 17, -3, 40000 };
struct __packed across { __u8 a : 3; __u16 b : 9; __u32 c : 21; __u64 d : 47; } across = { 5, 300, 1234567, 0x7abcdef01234ull };
struct wide_bits { __u64 a : 1, b : 63; } wide_bits = { 1, 0x7ffffffffffffffeull };
struct enum_bits { enum state state : 4; _Bool on : 1; } enum_bits = { OPEN, 1 };

/* Network order and addresses, by the kernel's own names. */
__be16 port = bpf_htons(443);
__be32 network_word = bpf_htonl(0x01020304);
__be64 network_long = bpf_cpu_to_be64(5);
struct in_addr v4 = { bpf_htonl(0x0a000001) };
struct in6_addr v6 = { { { 0x20, 1, 0x0d, 0xb8, [15] = 1 } } };
struct in6_addr mapped = { { { [10] = 0xff, 0xff, 192, 0, 2, 1 } } };
struct ether_addr { __u8 ether_addr_octet[6]; } ethernet = { { 2, 0, 0, 0, 0xab, 1 } };
struct sockaddr_in socket_address = { 2, bpf_htons(8080), { bpf_htonl(0x7f000001) }, {} };

/* By tags: on members, typedefs and variables. */
typedef __u64 moment_t __tag("time_ns");
typedef __be32 address_t __tag("ipv4");
struct tagged {
	__be32 source __tag("ipv4");
	__u32 list[2] __tag("ipv4");
	__u32 words[4] __tag("ipv6");
	__u8 mac[6] __tag("mac");
	__u8 macs[2][6] __tag("mac");
	__u16 port __tag("be");
	__u64 seen __tag("time_ns");
	__u64 took __tag("duration_ns");
	__s64 skew __tag("duration_ns");
	__u32 plain;
	__u8 wrong __tag("ipv6");
	moment_t started;
	address_t target;
} tagged = {
	bpf_htonl(0x0a000001), { bpf_htonl(0xc0a80001), 0 }, { bpf_htonl(0xfe800000), 0, 0, bpf_htonl(1) },
	{ 2, 0, 0, 0, 0, 1 }, { { 1, 2, 3, 4, 5, 6 }, { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff } }, bpf_htons(53),
	1767323045000000006ull, 1500000, -90000000001ll, 1, 9, 1000000000ull, bpf_htonl(0x08080808),
};
__u64 tagged_variable __tag("duration_ns") = 3600000000000ull;

/* Flexible array members: no more than the type's own bytes are in a map's value. */
struct flexible { __u32 count; __u16 items[]; } flexible = { 2, {} };

#ifndef NO_PROGRAM
SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
#endif
