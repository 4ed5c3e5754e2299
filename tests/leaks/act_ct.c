// SPDX-License-Identifier: GPL-2.0
/*
 * A packet shorter than a header of IPv4 comes to the action ct of traffic control. tcf_ct_act()
 * returns TC_ACT_CONSUMED, and does not free the packet.
 */
#include "netlink.h"
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/tc_act/tc_ct.h>
#include <net/if.h>

int main(void)
{
	int route = netlink(NETLINK_ROUTE), packets;
	struct ifinfomsg link = { .ifi_flags = IFF_UP, .ifi_change = IFF_UP };
	struct tcmsg tc = { .tcm_handle = TC_H_MAKE(TC_H_CLSACT, 0), .tcm_parent = TC_H_CLSACT };
	struct tc_ct ct = { .action = TC_ACT_PIPE };
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP), .sll_halen = ETH_ALEN };
	struct nlattr *nest, *actions, *action, *options;
	char frame[ETH_HLEN + 8] = { 0 };
	struct request r;

	begin(&r, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link, sizeof(link));
	attribute_text(&r, IFLA_IFNAME, "leaks0");
	nest = attribute(&r, IFLA_LINKINFO, NULL, 0);
	attribute_text(&r, IFLA_INFO_KIND, "dummy");
	nested(&r, nest);
	must(ask(route, &r));
	to.sll_ifindex = tc.tcm_ifindex = if_nametoindex("leaks0");

	begin(&r, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &tc, sizeof(tc));
	attribute_text(&r, TCA_KIND, "clsact");
	must(ask(route, &r));

	tc.tcm_handle = 0;
	tc.tcm_parent = TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS);
	tc.tcm_info = TC_H_MAKE(1 << 16, htons(ETH_P_ALL));
	begin(&r, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &tc, sizeof(tc));
	attribute_text(&r, TCA_KIND, "matchall");
	nest = attribute(&r, TCA_OPTIONS, NULL, 0);
	actions = attribute(&r, TCA_MATCHALL_ACT, NULL, 0);
	action = attribute(&r, 1, NULL, 0);
	attribute_text(&r, TCA_ACT_KIND, "ct");
	options = attribute(&r, TCA_ACT_OPTIONS | NLA_F_NESTED, NULL, 0);
	attribute(&r, TCA_CT_PARMS, &ct, sizeof(ct));
	nested(&r, options);
	nested(&r, action);
	nested(&r, actions);
	nested(&r, nest);
	must(ask(route, &r));

	packets = must(socket(AF_PACKET, SOCK_RAW, 0));
	for (int i = 0; i < TIMES; i++) {
		/* A kernel that frees the packet says that it was dropped. */
		if (sendto(packets, frame, sizeof(frame), 0, (struct sockaddr *)&to, sizeof(to)) < 0 && errno != ENOBUFS)
			fail("sendto");
	}
	close(packets);
	link = (struct ifinfomsg){ .ifi_index = to.sll_ifindex };
	begin(&r, RTM_DELLINK, 0, &link, sizeof(link));
	must(ask(route, &r));
	return triggered("act_ct");
}
