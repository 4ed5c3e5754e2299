// SPDX-License-Identifier: GPL-2.0
/*
 * A packet for a session of L2TP has another version in its header. l2tp_udp_encap_recv() keeps its
 * reference to the session. The session is lost when its tunnel is deleted.
 */
#include "l2tp.h"

int main(void)
{
	struct sockaddr_in from = { .sin_family = AF_INET, .sin_port = htons(PEER_PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_in to = from;
	int peer = must(socket(AF_INET, SOCK_DGRAM, 0));

	to.sin_port = htons(TUNNEL_PORT);
	l2tp_open();
	must(bind(peer, (struct sockaddr *)&from, sizeof(from)));
	tunnel_create(1, 3, TUNNEL_PORT);
	for (int i = 0; i < TIMES; i++) {
		/* The flags with the version 1, a reserved word, and the session. */
		struct {
			uint16_t flags, reserved;
			uint32_t session;
			char payload[20];
		} packet = { .flags = htons(1), .session = htonl(100 + i) };

		session_create(1, 100 + i);
		must(sendto(peer, &packet, sizeof(packet), 0, (struct sockaddr *)&to, sizeof(to)));
	}
	tunnel_delete(1);
	close(peer);
	return triggered("l2tp_version");
}
