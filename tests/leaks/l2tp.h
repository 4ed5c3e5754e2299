/* SPDX-License-Identifier: GPL-2.0 */
/* Tunnels and sessions of L2TP between two ports of the loopback device. */
#ifndef LEAKS_L2TP_H
#define LEAKS_L2TP_H

#include "netlink.h"
#include <arpa/inet.h>
#include <linux/l2tp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>

#define TUNNEL_PORT 1701
#define PEER_PORT 1702

static int generic, l2tp;

static inline void l2tp_open(void)
{
	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int any = must(socket(AF_INET, SOCK_DGRAM, 0));

	must(ioctl(any, SIOCSIFFLAGS, &lo));
	close(any);
	generic = netlink(NETLINK_GENERIC);
	l2tp = generic_family(generic, L2TP_GENL_NAME);
}

/*
 * Makes a tunnel with a socket of the kernel, at a port that is not used again: the socket is
 * closed later than the tunnel is.
 */
static inline void tunnel_create(uint32_t id, int version, uint16_t port)
{
	struct request r;

	begin_generic(&r, l2tp, L2TP_CMD_TUNNEL_CREATE, L2TP_GENL_VERSION);
	attribute_of(&r, L2TP_ATTR_CONN_ID, uint32_t, id);
	attribute_of(&r, L2TP_ATTR_PEER_CONN_ID, uint32_t, id);
	attribute_of(&r, L2TP_ATTR_PROTO_VERSION, uint8_t, version);
	attribute_of(&r, L2TP_ATTR_ENCAP_TYPE, uint16_t, L2TP_ENCAPTYPE_UDP);
	attribute_of(&r, L2TP_ATTR_IP_SADDR, uint32_t, htonl(INADDR_LOOPBACK));
	attribute_of(&r, L2TP_ATTR_IP_DADDR, uint32_t, htonl(INADDR_LOOPBACK));
	attribute_of(&r, L2TP_ATTR_UDP_SPORT, uint16_t, port);
	attribute_of(&r, L2TP_ATTR_UDP_DPORT, uint16_t, PEER_PORT);
	must(ask(generic, &r));
}

static inline void tunnel_delete(uint32_t id)
{
	struct request r;

	begin_generic(&r, l2tp, L2TP_CMD_TUNNEL_DELETE, L2TP_GENL_VERSION);
	attribute_of(&r, L2TP_ATTR_CONN_ID, uint32_t, id);
	must(ask(generic, &r));
}

/* Makes a session for frames of Ethernet. */
static inline void session_create(uint32_t tunnel, uint32_t id)
{
	struct request r;

	begin_generic(&r, l2tp, L2TP_CMD_SESSION_CREATE, L2TP_GENL_VERSION);
	attribute_of(&r, L2TP_ATTR_CONN_ID, uint32_t, tunnel);
	attribute_of(&r, L2TP_ATTR_SESSION_ID, uint32_t, id);
	attribute_of(&r, L2TP_ATTR_PEER_SESSION_ID, uint32_t, id);
	attribute_of(&r, L2TP_ATTR_PW_TYPE, uint16_t, L2TP_PWTYPE_ETH);
	must(ask(generic, &r));
}

#endif
