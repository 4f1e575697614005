/* The least that 100 tcx programs cost: one object loaded for each, and the links made in a row, half of them for packets
 * received and half for those sent, on lo of the network namespace that it runs in. Prints the time for the links alone
 * and for all, in milliseconds. Arguments: the object, its function. */
#include <bpf/libbpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define PROGRAMS 100
#define LO 1

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
		bpf_program__set_expected_attach_type(programs[i], i % 2 ? BPF_TCX_EGRESS : BPF_TCX_INGRESS);
		if (bpf_object__load(object))
			return 1;
	}
	loaded = now();
	for (int i = 0; i < PROGRAMS; i++)
		if (!bpf_program__attach_tcx(programs[i], LO, NULL))
			return 1;
	printf("%.3f %.3f\n", now() - loaded, now() - start);
	return 0;
}
