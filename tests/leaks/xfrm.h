/* SPDX-License-Identifier: GPL-2.0 */
/* What the programs about IPsec share. */
#ifndef LEAKS_XFRM_H
#define LEAKS_XFRM_H

#include "netlink.h"
#include <arpa/inet.h>
#include <linux/xfrm.h>

static inline void no_limits(struct xfrm_lifetime_cfg *l)
{
	l->soft_byte_limit = l->hard_byte_limit = XFRM_INF;
	l->soft_packet_limit = l->hard_packet_limit = XFRM_INF;
}

#endif
