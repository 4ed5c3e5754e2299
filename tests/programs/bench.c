// What scripts/bench measures inside a guest: loads of one kind each, timed by the guest's own CLOCK_MONOTONIC, which
// under TCG follows the host's clock. A static program, a step of the guest; each load ends in a line
// "bench: NAME MICROSECONDS" on the console, and figures that are no times in "bench-figure: NAME VALUE".
//
// How often a load goes round is a matter of its taking 0.3 to 2 s in a guest without plugin. A load that cannot be done
// says so and ends the program: a row that is there for some variants only would compare nothing.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *now_doing;

static void fail(const char *what)
{
	printf("bench: failed: %s: %s: %s\n", now_doing, what, strerror(errno));
	exit(1);
}

// Of a call that gives -1 when it fails.
#define must(call) ({ long must_ = (call); if (must_ < 0) fail(#call); must_; })

static long micros(void)
{
	struct timespec t;

	must(clock_gettime(CLOCK_MONOTONIC, &t));
	return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static void measure(const char *name, void (*load)(void))
{
	long began;

	now_doing = name;
	began = micros();
	load();
	printf("bench: %s %ld\n", name, micros() - began);
	fflush(stdout);
}

// Descriptors of three kinds, each made, used and closed: allocations and frees of a dozen objects.
static void descriptors(void)
{
	char byte = 1;

	for (int i = 0; i < 20000; i++) {
		struct epoll_event event = { .events = EPOLLIN };
		int ends[2], pair[2], epoll;

		must(pipe(ends));
		must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
		epoll = must(epoll_create1(0));
		must(epoll_ctl(epoll, EPOLL_CTL_ADD, pair[0], &event));
		must(write(ends[1], &byte, 1));
		must(read(ends[0], &byte, 1));
		must(write(pair[1], &byte, 1));
		must(epoll_wait(epoll, &event, 1, 1000));
		must(read(pair[0], &byte, 1));
		close(epoll);
		close(pair[0]);
		close(pair[1]);
		close(ends[0]);
		close(ends[1]);
	}
}

static void files(void)
{
	char name[64], text[512] = "some text";

	for (int i = 0; i < 10000; i++) {
		int file;

		snprintf(name, sizeof(name), "/tmp/bench-%d", i);
		file = must(open(name, O_CREAT | O_EXCL | O_RDWR, 0600));
		must(write(file, text, sizeof(text)));
		close(file);
		must(unlink(name));
	}
}

// This program again, which at once ends.
static void processes(void)
{
	for (int i = 0; i < 150; i++) {
		int status;
		pid_t child = must(fork());

		if (child == 0) {
			execl("/proc/self/exe", "bench", "nothing", (char *)NULL);
			_exit(127);
		}
		must(waitpid(child, &status, 0));
		if (status) {
			errno = 0;
			fail("exec");
		}
	}
}

static void loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int any = must(socket(AF_INET, SOCK_DGRAM, 0));

	must(ioctl(any, SIOCSIFFLAGS, &request));
	close(any);
}

// A connection each time, with some data in it. It ends by a reset, so that none stays in TIME_WAIT.
static void connections(void)
{
	struct sockaddr_in place = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct linger at_once = { .l_onoff = 1 };
	socklen_t size = sizeof(place);
	char data[1024] = "data";
	int listener = must(socket(AF_INET, SOCK_STREAM, 0));

	must(bind(listener, (struct sockaddr *)&place, sizeof(place)));
	must(listen(listener, 8));
	must(getsockname(listener, (struct sockaddr *)&place, &size));
	for (int i = 0; i < 1500; i++) {
		int here = must(socket(AF_INET, SOCK_STREAM, 0)), there;

		must(connect(here, (struct sockaddr *)&place, sizeof(place)));
		there = must(accept(listener, NULL, NULL));
		for (int j = 0; j < 4; j++) {
			must(send(here, data, sizeof(data), 0));
			must(recv(there, data, sizeof(data), MSG_WAITALL));
		}
		must(setsockopt(here, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)));
		close(here);
		close(there);
	}
	close(listener);
}

static void datagrams(void)
{
	struct sockaddr_in place = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(place);
	char data[1024] = "data";
	int socket_ = must(socket(AF_INET, SOCK_DGRAM, 0));

	must(bind(socket_, (struct sockaddr *)&place, sizeof(place)));
	must(getsockname(socket_, (struct sockaddr *)&place, &size));
	for (int i = 0; i < 30000; i++) {
		must(sendto(socket_, data, sizeof(data), 0, (struct sockaddr *)&place, size));
		must(recv(socket_, data, sizeof(data), 0));
	}
	close(socket_);
}

static void write_text(const char *file, const char *text)
{
	int f = open(file, O_WRONLY);

	if (f < 0)
		return;
	if (write(f, text, strlen(text)) < 0)
		errno = 0;
	close(f);
}

static char module[1 << 20];
static long module_size;

static void modules(void)
{
	for (int i = 0; i < 12; i++) {
		must(syscall(SYS_init_module, module, module_size, "numdummies=1"));
		must(syscall(SYS_delete_module, "dummy", O_NONBLOCK));
	}
}

static void read_module(void)
{
	struct utsname names;
	char path[512];
	int file;

	now_doing = "modules";
	must(uname(&names));
	snprintf(path, sizeof(path), "/lib/modules/%s/kernel/drivers/net/dummy.ko", names.release);
	file = must(open(path, O_RDONLY));
	module_size = must(read(file, module, sizeof(module)));
	close(file);
	// Most of the time would be spent waiting for grace periods, which nobody slows down.
	write_text("/sys/kernel/rcu_expedited", "1");
}

static volatile unsigned long sink;

// No system call at all: what a plugin costs code that it does not care for.
static void arithmetic(void)
{
	unsigned long x = 1, sum = 0;

	for (long i = 0; i < 200L * 1000 * 1000; i++) {
		x = x * 6364136223846793005UL + 1442695040888963407UL;
		sum += x >> 33;
		if (sum & 1)
			sum ^= x;
	}
	sink = sum;
}

// What a small system does for some seconds: many short programs, pipes, and all small files read and packed.
static void mixed(void)
{
	static const char script[] =
		"cd /tmp && mkdir mixed && cd mixed || exit 1\n"
		"for i in 1 2; do\n"
		"	find / -xdev -type f -size -200 | xargs cat | gzip -1 >packed.$i\n"
		"	gunzip -c <packed.$i | md5sum >sum.$i\n"
		"	find /sys/devices /sys/class /proc/sys -type f | sort -r | sed 's/[0-9]/n/g' | uniq -c | wc -l >names.$i\n"
		"done\n"
		"for i in $(seq 20); do\n"
		"	ls -l /bin | awk '{ print $NF }' | grep -c a >count.$i\n"
		"	mkdir d.$i && cp packed.1 d.$i/copy && mv d.$i e.$i && ln -s ../packed.1 e.$i/link && rm -r e.$i\n"
		"done\n"
		"cd / && rm -r /tmp/mixed\n";

	if (system(script)) {
		errno = 0;
		fail("the script");
	}
}

// The number of objects in use in a slab cache, or -1.
static long objects_in(const char *cache)
{
	char line[512], name[64];
	long active, found = -1;
	FILE *f = fopen("/proc/slabinfo", "r");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%63s %ld", name, &active) == 2 && !strcmp(name, cache))
			found = active;
	if (f)
		fclose(f);
	return found;
}

// kmemleak's own scan, in a guest whose kernel has it and where it is on. The second one finds the caches warm.
static void kmemleak(void)
{
	for (int i = 0; i < 2; i++) {
		int file = open("/sys/kernel/debug/kmemleak", O_WRONLY);
		long began = micros();

		if (file < 0)
			return;
		if (write(file, "scan", 4) == 4)
			printf("bench-figure: kmemleak-scan %ld\n", micros() - began);
		close(file);
	}
	printf("bench-figure: kmemleak-objects %ld\n", objects_in("kmemleak_object"));
}

// Many objects that stay: two and more for each file. What a live object costs is the difference that they make.
static void hold(void)
{
	char name[64];

	now_doing = "hold";
	must(mkdir("/tmp/held", 0700));
	for (int i = 0; i < 60000; i++) {
		snprintf(name, sizeof(name), "/tmp/held/%d", i);
		close(must(open(name, O_CREAT | O_EXCL | O_RDWR, 0600)));
	}
}

int main(int argc, char **argv)
{
	long up = micros();

	if (argc > 1 && !strcmp(argv[1], "nothing"))
		return 0;
	if (argc > 1 && !strcmp(argv[1], "hold")) {
		hold();
		printf("bench: done 0\n");
		return 0;
	}
	// Messages of the kernel on a serial line take longer than what they tell of.
	write_text("/proc/sys/kernel/printk", "1");
	printf("bench: boot %ld\n", up);
	// One alone, for a profile.
	if (argc > 1 && !strcmp(argv[1], "descriptors")) {
		for (int i = 0; i < 5; i++)
			measure("descriptors", descriptors);
		printf("bench: done 0\n");
		return 0;
	}
	measure("arithmetic", arithmetic);
	measure("descriptors", descriptors);
	measure("files", files);
	measure("processes", processes);
	loopback_up();
	measure("connections", connections);
	measure("datagrams", datagrams);
	read_module();
	measure("modules", modules);
	write_text("/sys/kernel/rcu_expedited", "0");
	measure("mixed", mixed);
	now_doing = "kmemleak";
	kmemleak();
	printf("bench: done 0\n");
	return 0;
}
