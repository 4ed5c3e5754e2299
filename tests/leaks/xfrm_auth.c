// SPDX-License-Identifier: GPL-2.0
/*
 * Adds a state of IPsec with XFRMA_ALG_AUTH_TRUNC and XFRMA_ALG_AUTH. The algorithm of the first
 * has no number of PF_KEY. xfrm_state_construct() takes that for none, and overwrites it by the
 * second.
 */
#include "xfrm.h"

int main(void)
{
	int xfrm = netlink(NETLINK_XFRM);
	struct request r;

	for (int i = 0; i < TIMES; i++) {
		struct xfrm_usersa_info state = {
			.id = { .daddr.a4 = htonl(0x0a000001), .spi = htonl(1000 + i), .proto = IPPROTO_AH },
			.saddr.a4 = htonl(0x0a000002),
			.family = AF_INET,
			.mode = XFRM_MODE_TRANSPORT,
		};
		struct xfrm_usersa_id id = { .daddr = state.id.daddr, .spi = state.id.spi, .family = AF_INET, .proto = IPPROTO_AH };
		struct {
			struct xfrm_algo_auth algo;
			char key[16];
		} truncated = { .algo = { .alg_name = "cmac(aes)", .alg_key_len = 128, .alg_trunc_len = 96 } };
		struct {
			struct xfrm_algo algo;
			char key[20];
		} plain = { .algo = { .alg_name = "hmac(sha1)", .alg_key_len = 160 } };

		no_limits(&state.lft);
		begin(&r, XFRM_MSG_NEWSA, NLM_F_CREATE | NLM_F_EXCL, &state, sizeof(state));
		attribute(&r, XFRMA_ALG_AUTH_TRUNC, &truncated, sizeof(truncated));
		attribute(&r, XFRMA_ALG_AUTH, &plain, sizeof(plain));
		must(ask(xfrm, &r));
		begin(&r, XFRM_MSG_DELSA, 0, &id, sizeof(id));
		must(ask(xfrm, &r));
	}
	return triggered("xfrm_auth");
}
