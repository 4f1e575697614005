/* The least that 100 tcx programs cost: one object loaded for each, and the links made in a row, half of them for packets
 * received and half for those sent, on lo of the network namespace that it runs in. Prints the time for the links alone
 * and for all, in milliseconds. Arguments: the object, its function. */
#include <bpf/libbpf.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PROGRAMS 100
#define LO 1
/* BPF_TCX_INGRESS, and the next is egress: Linux 6.6, newer than many a libbpf. */
#define TCX_INGRESS 46

static int attach(int program, int type)
{
	union bpf_attr attr = { .link_create = { .prog_fd = program, .target_fd = LO, .attach_type = type } };

	return syscall(__NR_bpf, BPF_LINK_CREATE, &attr, sizeof(attr));
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

int main(int argc, char **argv)
{
	struct bpf_program *programs[PROGRAMS];
	double start = now(), loaded;

	if (argc != 3)
		return 2;
	for (int i = 0; i < PROGRAMS; i++) {
		struct bpf_object *object = bpf_object__open_file(argv[1], NULL);
		struct bpf_program *other;

		if (!object)
			return 1;
		bpf_object__for_each_program(other, object)
			bpf_program__set_autoload(other, 0);
		programs[i] = bpf_object__find_program_by_name(object, argv[2]);
		if (!programs[i])
			return 1;
		bpf_program__set_autoload(programs[i], 1);
		if (bpf_object__load(object))
			return 1;
	}
	loaded = now();
	for (int i = 0; i < PROGRAMS; i++)
		if (attach(bpf_program__fd(programs[i]), TCX_INGRESS + i % 2) < 0)
			return 1;
	printf("%.3f %.3f\n", now() - loaded, now() - start);
	return 0;
}
