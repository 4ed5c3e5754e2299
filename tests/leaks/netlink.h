/* SPDX-License-Identifier: GPL-2.0 */
/* Requests to netlink: built in one buffer, sent, and answered by an acknowledgement. */
#ifndef LEAKS_NETLINK_H
#define LEAKS_NETLINK_H

#include "leaks.h"
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <sys/socket.h>

struct request {
	char bytes[8192];
};

static inline struct nlmsghdr *head(struct request *r)
{
	return (struct nlmsghdr *)r->bytes;
}

/* Begins a request with the header of its family, of `size` bytes. */
static inline void begin(struct request *r, int type, int flags, const void *family, size_t size)
{
	memset(r, 0, sizeof(*r));
	head(r)->nlmsg_type = type;
	head(r)->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
	head(r)->nlmsg_len = NLMSG_LENGTH(size);
	memcpy(NLMSG_DATA(head(r)), family, size);
}

/* Adds an attribute. */
static inline struct nlattr *attribute(struct request *r, int type, const void *data, size_t size)
{
	size_t end = NLMSG_ALIGN(head(r)->nlmsg_len);
	struct nlattr *at = (struct nlattr *)(r->bytes + end);

	if (end + NLA_HDRLEN + NLA_ALIGN(size) > sizeof(r->bytes))
		fail("the request is too long");
	at->nla_type = type;
	at->nla_len = NLA_HDRLEN + size;
	if (size)
		memcpy(r->bytes + end + NLA_HDRLEN, data, size);
	head(r)->nlmsg_len = end + NLA_ALIGN(at->nla_len);
	return at;
}

#define attribute_of(r, type, c_type, value) attribute(r, type, &(c_type){ value }, sizeof(c_type))

static inline struct nlattr *attribute_text(struct request *r, int type, const char *text)
{
	return attribute(r, type, text, strlen(text) + 1);
}

/* Ends a nest that attribute(r, type, NULL, 0) began. */
static inline void nested(struct request *r, struct nlattr *nest)
{
	nest->nla_len = r->bytes + head(r)->nlmsg_len - (char *)nest;
}

static inline int netlink(int protocol)
{
	return must(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));
}

/*
 * Sends the request and reads the first answer into it. Returns -1 with errno if that is an error.
 */
static inline int ask(int netlink, struct request *r)
{
	must(send(netlink, r->bytes, head(r)->nlmsg_len, 0));
	must(recv(netlink, r->bytes, sizeof(r->bytes), 0));
	if (head(r)->nlmsg_type == NLMSG_ERROR) {
		errno = -((struct nlmsgerr *)NLMSG_DATA(head(r)))->error;
		return errno ? -1 : 0;
	}
	return 0;
}

/* Begins a request to a family of generic netlink. */
static inline void begin_generic(struct request *r, int family, int command, int version)
{
	struct genlmsghdr generic = { .cmd = command, .version = version };

	begin(r, family, 0, &generic, sizeof(generic));
}

/* The number of a family of generic netlink. */
static inline int generic_family(int netlink, const char *name)
{
	struct request r;
	char *at, *end;
	int family = -1;

	begin_generic(&r, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1);
	attribute_text(&r, CTRL_ATTR_FAMILY_NAME, name);
	must(ask(netlink, &r));
	end = r.bytes + head(&r)->nlmsg_len;
	at = r.bytes + NLMSG_LENGTH(GENL_HDRLEN);
	while (at < end) {
		struct nlattr *a = (struct nlattr *)at;

		if (a->nla_type == CTRL_ATTR_FAMILY_ID)
			family = *(uint16_t *)(at + NLA_HDRLEN);
		at += NLA_ALIGN(a->nla_len);
	}
	/* The acknowledgement after the answer. */
	must(recv(netlink, r.bytes, sizeof(r.bytes), 0));
	return must(family);
}

#endif
