// SPDX-License-Identifier: GPL-2.0
/* Sends from memory that is not there by NET/ROM: nr_sendmsg() forgets the packet. */
#include "leaks.h"
#include <linux/netrom.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

int main(void)
{
	/* A callsign's letters are shifted by one bit. */
	struct sockaddr_ax25 own = { .sax25_family = AF_NETROM, .sax25_call = { { 'L' << 1, 'E' << 1, 'A' << 1, 'K' << 1, 'S' << 1, ' ' << 1, 0 } } };
	struct sockaddr_ax25 to = { .sax25_family = AF_NETROM };
	struct ifreq device = { .ifr_name = "nr0", .ifr_hwaddr.sa_family = ARPHRD_NETROM };
	int s = must(socket(AF_NETROM, SOCK_SEQPACKET, 0));

	memcpy(device.ifr_hwaddr.sa_data, &own.sax25_call, sizeof(own.sax25_call));
	must(ioctl(s, SIOCSIFHWADDR, &device));
	device.ifr_flags = IFF_UP;
	must(ioctl(s, SIOCSIFFLAGS, &device));
	must(bind(s, (struct sockaddr *)&own, sizeof(own)));
	for (int i = 0; i < TIMES; i++)
		must_fail(sendto(s, (void *)8, 100, 0, (struct sockaddr *)&to, sizeof(to)), EFAULT);
	close(s);
	return triggered("netrom_send");
}
