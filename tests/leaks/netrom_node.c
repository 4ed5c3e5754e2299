// SPDX-License-Identifier: GPL-2.0
/*
 * Adds a route of NET/ROM to a node, and deletes it. nr_del_node() keeps its reference to the node.
 * The route needs an AX.25 device, which is a pseudoterminal here.
 */
#define _GNU_SOURCE
#include "leaks.h"
#include <linux/netrom.h>
#include <linux/tty.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

int main(void)
{
	int terminal = must(posix_openpt(O_RDWR | O_NOCTTY)), line, discipline = N_AX25, encapsulation = 4;
	int s = must(socket(AF_NETROM, SOCK_SEQPACKET, 0));
	struct ifreq device = { .ifr_flags = IFF_UP };
	struct nr_route_struct route = {
		.type = NETROM_NODE,
		.quality = 100,
		.obs_count = 6,
		.mnemonic = "LEAKS",
		.neighbour = { { 'N' << 1, 'E' << 1, 'A' << 1, 'R' << 1, ' ' << 1, ' ' << 1, 0 } },
	};

	must(grantpt(terminal));
	must(unlockpt(terminal));
	line = must(open(ptsname(terminal), O_RDWR | O_NOCTTY));
	must(ioctl(line, TIOCSETD, &discipline));
	must(ioctl(line, SIOCSIFENCAP, &encapsulation));
	must(ioctl(line, SIOCGIFNAME, device.ifr_name));
	must(ioctl(s, SIOCSIFFLAGS, &device));
	memcpy(route.device, device.ifr_name, sizeof(route.device));
	for (int i = 0; i < TIMES; i++) {
		route.callsign = (ax25_address){ { 'F' << 1, 'A' << 1, 'R' << 1, ('A' + i % 26) << 1, ('A' + i / 26) << 1, ' ' << 1, 0 } };
		must(ioctl(s, SIOCADDRT, &route));
		must(ioctl(s, SIOCDELRT, &route));
	}
	close(s);
	close(line);
	close(terminal);
	return triggered("netrom_node");
}
