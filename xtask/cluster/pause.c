/* The process that holds a pod's namespaces: sleeps, reaps orphans, ends when asked to. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void on_signal(int signal)
{
	if (signal == SIGCHLD)
		while (waitpid(-1, 0, WNOHANG) > 0)
			;
	else
		_exit(0);
}

int main(void)
{
	signal(SIGTERM, on_signal);
	signal(SIGINT, on_signal);
	signal(SIGCHLD, on_signal);
	for (;;)
		pause();
}
