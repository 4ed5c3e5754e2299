// SPDX-License-Identifier: GPL-2.0
/*
 * Sends a message by NET/ROM that is larger than the send buffer, over the loopback device. A
 * signal comes while nr_output() waits for room for a fragment. nr_output() then forgets the
 * message.
 */
#include "leaks.h"
#include <linux/netrom.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>

static void on_alarm(int signal)
{
	(void)signal;
}

int main(void)
{
	/* The letters of a callsign are shifted by one bit. */
	struct sockaddr_ax25 own = { .sax25_family = AF_NETROM, .sax25_call = { { 'L' << 1, 'E' << 1, 'A' << 1, 'K' << 1, 'S' << 1, ' ' << 1, 0 } } };
	struct ifreq device = { .ifr_name = "nr0", .ifr_hwaddr.sa_family = ARPHRD_NETROM };
	struct itimerval soon = { .it_value.tv_usec = 30000, .it_interval.tv_usec = 30000 }, never = { 0 };
	struct sigaction action = { .sa_handler = on_alarm };
	int listener = must(socket(AF_NETROM, SOCK_SEQPACKET, 0)), smallest = 1;
	static char message[8000];

	memcpy(device.ifr_hwaddr.sa_data, &own.sax25_call, sizeof(own.sax25_call));
	must(ioctl(listener, SIOCSIFHWADDR, &device));
	device.ifr_flags = IFF_UP;
	must(ioctl(listener, SIOCSIFFLAGS, &device));
	must(bind(listener, (struct sockaddr *)&own, sizeof(own)));
	must(listen(listener, TIMES));
	must(sigaction(SIGALRM, &action, NULL));
	for (int i = 0; i < TIMES; i++) {
		int s = must(socket(AF_NETROM, SOCK_SEQPACKET, 0));

		must(setsockopt(s, SOL_SOCKET, SO_SNDBUF, &smallest, sizeof(smallest)));
		must(bind(s, (struct sockaddr *)&own, sizeof(own)));
		must(connect(s, (struct sockaddr *)&own, sizeof(own)));
		must(setitimer(ITIMER_REAL, &soon, NULL));
		must(send(s, message, sizeof(message), 0));
		must(setitimer(ITIMER_REAL, &never, NULL));
		close(s);
	}
	close(listener);
	return triggered("netrom_send");
}
