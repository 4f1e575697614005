/* A small cgroup_skb program reloaded by libbpf, in one process: opened, loaded, put in the place of the one before by
 * link update, and that one closed. Prints the median in microseconds. Arguments: the object, a cgroup. */
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define ROUNDS 100

static struct bpf_object *load(const char *path)
{
	struct bpf_object *object = bpf_object__open_file(path, NULL);

	if (!object || bpf_object__load(object))
		exit(1);
	return object;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	double times[ROUNDS];
	struct bpf_object *old;
	struct bpf_link *link;

	if (argc != 3)
		return 2;
	old = load(argv[1]);
	link = bpf_program__attach_cgroup(bpf_object__find_program_by_name(old, "count"), open(argv[2], O_RDONLY));
	if (!link)
		return 1;
	for (int i = 0; i < ROUNDS; i++) {
		double start = now();
		struct bpf_object *new = load(argv[1]);

		if (bpf_link__update_program(link, bpf_object__find_program_by_name(new, "count")))
			return 1;
		bpf_object__close(old);
		old = new;
		times[i] = now() - start;
	}
	qsort(times, ROUNDS, sizeof(times[0]), compare);
	printf("%.1f\n", times[ROUNDS / 2]);
	bpf_link__destroy(link);
	return 0;
}
