// SPDX-License-Identifier: GPL-2.0
/*
 * Migrates a policy of IPsec, and deletes it. xfrm_migrate_policy_find() takes a second reference
 * to the policy. The policy is lost when it is deleted.
 */
#include "xfrm.h"

int main(void)
{
	int xfrm = netlink(NETLINK_XFRM);
	struct request r;

	for (int i = 0; i < TIMES; i++) {
		struct xfrm_selector selector = {
			.daddr.a4 = htonl(0x0a010001 + i),
			.saddr.a4 = htonl(0x0a020001),
			.family = AF_INET,
			.prefixlen_d = 32,
			.prefixlen_s = 32,
		};
		struct xfrm_userpolicy_info policy = { .sel = selector, .dir = XFRM_POLICY_OUT, .action = XFRM_POLICY_ALLOW };
		struct xfrm_userpolicy_id id = { .sel = selector, .dir = XFRM_POLICY_OUT };
		struct xfrm_user_tmpl template = {
			.id = { .daddr = selector.daddr, .proto = IPPROTO_AH },
			.family = AF_INET,
			.saddr = selector.saddr,
			.mode = XFRM_MODE_TUNNEL,
			.aalgos = ~0U,
		};
		struct xfrm_user_migrate move = {
			.old_daddr = selector.daddr,
			.old_saddr = selector.saddr,
			.new_daddr.a4 = htonl(0x0a030001 + i),
			.new_saddr.a4 = htonl(0x0a040001),
			.proto = IPPROTO_AH,
			.mode = XFRM_MODE_TUNNEL,
			.old_family = AF_INET,
			.new_family = AF_INET,
		};

		no_limits(&policy.lft);
		begin(&r, XFRM_MSG_NEWPOLICY, NLM_F_CREATE | NLM_F_EXCL, &policy, sizeof(policy));
		attribute(&r, XFRMA_TMPL, &template, sizeof(template));
		must(ask(xfrm, &r));
		begin(&r, XFRM_MSG_MIGRATE, 0, &id, sizeof(id));
		attribute(&r, XFRMA_MIGRATE, &move, sizeof(move));
		must(ask(xfrm, &r));
		begin(&r, XFRM_MSG_DELPOLICY, 0, &id, sizeof(id));
		must(ask(xfrm, &r));
	}
	return triggered("xfrm_migrate");
}
