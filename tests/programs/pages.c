// SPDX-License-Identifier: GPL-2.0
/*
 * Has the kernel take pages in every way that a program can ask for, keeps them, and goes on in the background:
 *
 *	pages: NAME ok		or, where this kernel does not have it, what it said
 *
 * None of them is lost.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/if_xdp.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/vhost.h>
#include <linux/virtio_ring.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef AF_XDP
#define AF_XDP 44
#endif
#ifndef SOL_XDP
#define SOL_XDP 283
#endif
#ifndef __NR_memfd_secret
#define __NR_memfd_secret 447
#endif
#define PAGE 4096UL
#define RING 256
#define VNET_HEADER 12

static int tap = -1;

static int fail(const char *what)
{
	fprintf(stderr, "%s: ", what);
	return -1;
}

static void *anonymous(size_t pages)
{
	void *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memset(at, 0x55, pages * PAGE);
	return at;
}

/* One ring that is mapped, and one that was and is not. */
static int perf(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_CONTEXT_SWITCHES,
		.sample_period = 1,
		.sample_type = PERF_SAMPLE_IP | PERF_SAMPLE_TID,
	};
	int first = syscall(SYS_perf_event_open, &attr, -1, 0, -1, 0);
	int other = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
	void *gone;

	if (first < 0 || other < 0)
		return fail("perf_event_open");
	if (mmap(NULL, 65 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, first, 0) == MAP_FAILED)
		return fail("mmap");
	gone = mmap(NULL, 9 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
	if (gone == MAP_FAILED)
		return fail("mmap");
	munmap(gone, 9 * PAGE);
	return 0;
}

/* A ring that is mapped and has registered buffers, and one that nobody maps. */
static int uring(void)
{
	struct io_uring_params p = { 0 }, q = { 0 };
	int ring = syscall(SYS_io_uring_setup, RING, &p), bare = syscall(SYS_io_uring_setup, RING, &q);
	struct iovec buffers[4];

	if (ring < 0 || bare < 0)
		return fail("io_uring_setup");
	if (mmap(NULL, p.sq_off.array + p.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING) ==
	    MAP_FAILED)
		return fail("mmap");
	for (int i = 0; i < 4; i++)
		buffers[i] = (struct iovec){ anonymous(256), 256 * PAGE };
	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, buffers, 4))
		return fail("IORING_REGISTER_BUFFERS");
	return 0;
}

/* Pages that are not in the direct map; some of the file are mapped by nobody. */
static int secret(void)
{
	int file = syscall(__NR_memfd_secret, 0);
	char *at;

	if (file < 0 || ftruncate(file, 64 * PAGE))
		return fail("memfd_secret");
	at = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (at == MAP_FAILED)
		return fail("mmap");
	memset(at, 1, 64 * PAGE);
	munmap(at + 32 * PAGE, 32 * PAGE);
	return 0;
}

static int xdp(void)
{
	struct xdp_umem_reg umem = { .addr = (uintptr_t)anonymous(512), .len = 512 * PAGE, .chunk_size = 2048 };
	struct sockaddr_xdp name = { .sxdp_family = AF_XDP, .sxdp_ifindex = if_nametoindex("lo"), .sxdp_flags = XDP_COPY };
	int s = socket(AF_XDP, SOCK_RAW, 0), n = RING;

	if (s < 0)
		return fail("socket");
	if (setsockopt(s, SOL_XDP, XDP_UMEM_REG, &umem, sizeof(umem)))
		return fail("XDP_UMEM_REG");
	if (setsockopt(s, SOL_XDP, XDP_UMEM_FILL_RING, &n, sizeof(n)) ||
	    setsockopt(s, SOL_XDP, XDP_UMEM_COMPLETION_RING, &n, sizeof(n)) ||
	    setsockopt(s, SOL_XDP, XDP_RX_RING, &n, sizeof(n)) || setsockopt(s, SOL_XDP, XDP_TX_RING, &n, sizeof(n)))
		return fail("rings");
	if (mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, s, XDP_PGOFF_RX_RING) == MAP_FAILED)
		return fail("mmap");
	if (bind(s, (struct sockaddr *)&name, sizeof(name)))
		return fail("bind");
	return 0;
}

static int up(const char *name)
{
	struct ifreq request = { 0 };
	int s = socket(AF_INET, SOCK_DGRAM, 0), failed;

	strcpy(request.ifr_name, name);
	request.ifr_flags = IFF_UP;
	failed = ioctl(s, SIOCSIFFLAGS, &request);
	close(s);
	return failed;
}

static int tun(void)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	static char packet[VNET_HEADER + 1500];
	int header = VNET_HEADER;

	tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
	if (tap < 0)
		return fail("/dev/net/tun");
	strcpy(request.ifr_name, "tap0");
	if (ioctl(tap, TUNSETIFF, &request) || ioctl(tap, TUNSETVNETHDRSZ, &header) || up("tap0"))
		return fail("tap0");
	memset(packet + VNET_HEADER, 0xff, 12);
	packet[VNET_HEADER + 12] = 8;
	for (int i = 0; i < 200; i++)
		if (write(tap, packet, sizeof(packet)) != sizeof(packet))
			return fail("write");
	return 0;
}

/* Both queues of a device whose rings are this process's memory; one packet is sent, and room for some is given. */
static int vhost(void)
{
	int net = open("/dev/vhost-net", O_RDWR);
	uint64_t features = 1ULL << VHOST_NET_F_VIRTIO_NET_HDR;
	char *memory = anonymous(256);
	struct vhost_memory *table = calloc(1, sizeof(*table) + sizeof(table->regions[0]));

	if (net < 0)
		return fail("/dev/vhost-net");
	table->nregions = 1;
	table->regions[0] = (struct vhost_memory_region){
		.guest_phys_addr = (uintptr_t)memory, .memory_size = 256 * PAGE, .userspace_addr = (uintptr_t)memory
	};
	if (ioctl(net, VHOST_SET_OWNER) || ioctl(net, VHOST_SET_FEATURES, &features) || ioctl(net, VHOST_SET_MEM_TABLE, table))
		return fail("owner, features, table");
	for (unsigned int queue = 0; queue < 2; queue++) {
		struct vring ring;
		struct vhost_vring_state size = { queue, RING }, base = { queue, 0 };
		struct vhost_vring_addr addresses = { .index = queue };
		struct vhost_vring_file kick = { queue, eventfd(0, 0) }, call = { queue, eventfd(0, 0) }, backend = { queue, tap };

		vring_init(&ring, RING, memory + queue * 64 * PAGE, PAGE);
		memset(ring.desc, 0, 16 * PAGE);
		for (int i = 0; i < RING / 2; i++) {
			ring.desc[i] = (struct vring_desc){ (uintptr_t)memory + (128 + i % 64) * PAGE, 1600,
							    queue ? 0 : VRING_DESC_F_WRITE, 0 };
			ring.avail->ring[i] = i;
		}
		ring.avail->idx = queue ? 1 : RING / 2;
		addresses.desc_user_addr = (uintptr_t)ring.desc;
		addresses.avail_user_addr = (uintptr_t)ring.avail;
		addresses.used_user_addr = (uintptr_t)ring.used;
		if (ioctl(net, VHOST_SET_VRING_NUM, &size) || ioctl(net, VHOST_SET_VRING_BASE, &base) ||
		    ioctl(net, VHOST_SET_VRING_ADDR, &addresses) || ioctl(net, VHOST_SET_VRING_KICK, &kick) ||
		    ioctl(net, VHOST_SET_VRING_CALL, &call) || ioctl(net, VHOST_NET_SET_BACKEND, &backend))
			return fail("vring");
		if (eventfd_write(kick.fd, 1))
			return fail("kick");
	}
	usleep(200000);
	return 0;
}

/* Rings of packet sockets: one is mapped, one is not. */
static int packet(void)
{
	struct tpacket_req ring = { .tp_block_size = 16 * PAGE, .tp_block_nr = 8, .tp_frame_size = 2048, .tp_frame_nr = 256 };

	for (int i = 0; i < 2; i++) {
		int s = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));

		if (s < 0 || setsockopt(s, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)))
			return fail("PACKET_RX_RING");
		if (i && mmap(NULL, 128 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, s, 0) == MAP_FAILED)
			return fail("mmap");
	}
	return 0;
}

/* Data that nobody reads: in pipes, in a Unix socket, and in a TCP connection, in page fragments and in pages of the sender's. */
static int queued(void)
{
	static char data[64 << 10];
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(address);
	int pipes[2], pair[2], server = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
	struct iovec piece = { anonymous(8), 8 * PAGE };

	up("lo");
	if (pipe(pipes) || write(pipes[1], data, sizeof(data) / 2) < 0 || syscall(SYS_vmsplice, pipes[1], &piece, 1, 0) < 0)
		return fail("pipe");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) || write(pair[0], data, sizeof(data)) < 0)
		return fail("socketpair");
	if (bind(server, (struct sockaddr *)&address, sizeof(address)) || listen(server, 1) ||
	    getsockname(server, (struct sockaddr *)&address, &len) || connect(client, (struct sockaddr *)&address, len))
		return fail("connect");
	if (accept(server, NULL, NULL) < 0 || fcntl(client, F_SETFL, O_NONBLOCK) || write(client, data, sizeof(data)) < 0)
		return fail("write");
	return 0;
}

int main(void)
{
	static const struct {
		const char *name;
		int (*take)(void);
	} ways[] = {
		{ "perf", perf }, { "io_uring", uring }, { "secretmem", secret }, { "queued", queued },
		{ "xdp", xdp },	  { "tun", tun },	 { "vhost", vhost },	  { "packet", packet },
	};

	for (unsigned int i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		if (ways[i].take())
			fprintf(stderr, "%s\n", strerror(errno));
		else
			printf("pages: %s ok\n", ways[i].name);
	}
	fflush(stdout);
	if (fork() > 0)
		_exit(0);
	pause();
	return 0;
}
