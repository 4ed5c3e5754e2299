// SPDX-License-Identifier: GPL-2.0
/*
 * A packet of Generic UDP Encapsulation has the inner protocol 0. gue_udp_recv() then returns 0,
 * which says that the packet is done. Nobody frees it.
 */
#include "netlink.h"
#include <arpa/inet.h>
#include <linux/fou.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>

#define PORT 6080

int main(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	/* Version, length and control are 0, so is the protocol, and so are the flags. */
	char header[4] = { 0 };
	int generic = netlink(NETLINK_GENERIC), from = must(socket(AF_INET, SOCK_DGRAM, 0));
	int family = generic_family(generic, FOU_GENL_NAME);
	struct request r;

	must(ioctl(from, SIOCSIFFLAGS, &lo));
	begin_generic(&r, family, FOU_CMD_ADD, FOU_GENL_VERSION);
	attribute_of(&r, FOU_ATTR_PORT, uint16_t, htons(PORT));
	attribute_of(&r, FOU_ATTR_TYPE, uint8_t, FOU_ENCAP_GUE);
	attribute_of(&r, FOU_ATTR_AF, uint8_t, AF_INET);
	must(ask(generic, &r));
	for (int i = 0; i < TIMES; i++)
		must(sendto(from, header, sizeof(header), 0, (struct sockaddr *)&to, sizeof(to)));
	begin_generic(&r, family, FOU_CMD_DEL, FOU_GENL_VERSION);
	attribute_of(&r, FOU_ATTR_PORT, uint16_t, htons(PORT));
	attribute_of(&r, FOU_ATTR_AF, uint8_t, AF_INET);
	must(ask(generic, &r));
	return triggered("gue_skb");
}
