// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The file kmemleak for kernels without kmemleak: `scan` and `clear` can be written to it, and it
 * can be read. libleak answers (Documentation/dev-tools/kmemleak.rst, fs/fuse/dev.c).
 *
 * Nothing can be added to debugfs from outside of the kernel, so a FUSE file system is mounted over
 * it. Everything else there is a symbolic link into `.debugfs`, where debugfs is mounted again.
 * Entries that come later are seen, too.
 */

#define _GNU_SOURCE
#include "leak-guest.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILE_NAME "kmemleak"
#define BEHIND ".debugfs"
#define MAX_REQUEST (128 << 10) /* bytes; FUSE_MIN_READ_BUFFER is less */
#define MAX_WRITE 4096
#define MAX_TEXT (16 << 20) /* bytes that the file has */
#define MAX_NAMES 4096	    /* names of debugfs that have been looked up */

/* Numbers of nodes: the root is FUSE_ROOT_ID. Links follow. */
enum { NODE_FILE = 2, NODE_BEHIND, NODE_LINKS = 16 };

static struct server {
	int device;  /* of FUSE */
	int debugfs; /* the folder below the mount */
	char *names[MAX_NAMES];
	unsigned int count;
	char *text; /* what reading gives */
	size_t length;
	int is_off; /* "off" was written */
} server;

static void reply(const struct fuse_in_header *in, int error, const void *data, size_t len)
{
	struct fuse_out_header out = { .len = sizeof(out) + len, .error = -error, .unique = in->unique };
	static char message[sizeof(out) + MAX_REQUEST];

	memcpy(message, &out, sizeof(out));
	memcpy(message + sizeof(out), data, len);
	/* The caller may have been interrupted. */
	if (write(server.device, message, out.len) < 0 && errno != ENOENT)
		perror("leak-guest: /dev/fuse");
}

static void reply_error(const struct fuse_in_header *in, int error)
{
	reply(in, error, "", 0);
}

/* The node of a link by its name; 0 if there are too many. */
static uint64_t link_node(const char *name)
{
	for (unsigned int i = 0; i < server.count; i++)
		if (strcmp(server.names[i], name) == 0)
			return NODE_LINKS + i;
	if (server.count == MAX_NAMES || !(server.names[server.count] = strdup(name)))
		return 0;
	return NODE_LINKS + server.count++;
}

static uint64_t node_of(const char *name)
{
	struct stat found;

	if (strcmp(name, FILE_NAME) == 0)
		return NODE_FILE;
	if (strcmp(name, BEHIND) == 0)
		return NODE_BEHIND;
	if (fstatat(server.debugfs, name, &found, AT_SYMLINK_NOFOLLOW) != 0)
		return 0;
	return link_node(name);
}

static struct fuse_attr attr_of(uint64_t node)
{
	struct fuse_attr attr = { .ino = node, .nlink = 1, .blksize = 4096 };

	/* As debugfs and kmemleak have them. */
	attr.mode = node == NODE_FILE ? S_IFREG | 0644 : S_IFLNK | 0777;
	attr.size = node == NODE_FILE ? server.length : 0;
	if (node == FUSE_ROOT_ID || node == NODE_BEHIND)
		attr.mode = S_IFDIR | 0700;
	return attr;
}

static void lookup(const struct fuse_in_header *in, const char *name)
{
	struct fuse_entry_out out = { .nodeid = in->nodeid == FUSE_ROOT_ID ? node_of(name) : 0 };

	if (!out.nodeid)
		return reply_error(in, ENOENT);
	out.attr = attr_of(out.nodeid);
	reply(in, 0, &out, sizeof(out));
}

static void read_link(const struct fuse_in_header *in)
{
	char target[sizeof(BEHIND) + 1 + NAME_MAX];

	if (in->nodeid < NODE_LINKS || in->nodeid - NODE_LINKS >= server.count)
		return reply_error(in, EINVAL);
	snprintf(target, sizeof(target), BEHIND "/%s", server.names[in->nodeid - NODE_LINKS]);
	reply(in, 0, target, strlen(target));
}

/* Adds an entry to a listing, if there is room for it. */
static size_t add_entry(char *list, size_t at, size_t room, const char *name, uint64_t next)
{
	struct fuse_dirent entry = { .ino = next, .off = next, .namelen = strlen(name) };
	size_t len = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + entry.namelen);

	if (at + len > room)
		return 0;
	memset(list + at, 0, len);
	memcpy(list + at, &entry, FUSE_NAME_OFFSET);
	memcpy(list + at + FUSE_NAME_OFFSET, name, entry.namelen);
	return len;
}

/* Lists the root: kmemleak first, then what debugfs has, from the entry `offset` on. */
static void read_dir(const struct fuse_in_header *in, const struct fuse_read_in *read)
{
	static char list[MAX_REQUEST];
	size_t at = 0, len = 1, room = read->size < sizeof(list) ? read->size : sizeof(list);
	uint64_t number = 0;
	struct dirent *entry;
	int fd = openat(server.debugfs, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *folder = fd < 0 ? NULL : fdopendir(fd);

	if (!folder)
		return reply_error(in, EIO);
	if (in->nodeid == FUSE_ROOT_ID && read->offset == 0)
		at += add_entry(list, 0, room, FILE_NAME, 1);
	while (in->nodeid == FUSE_ROOT_ID && len && (entry = readdir(folder)))
		if (++number >= read->offset) {
			len = add_entry(list, at, room, entry->d_name, number + 1);
			at += len;
		}
	closedir(folder);
	reply(in, 0, list, at);
}

/* Writes a line to the kernel's log, as kmemleak does. */
static void tell(const char *line)
{
	int log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);

	if (log >= 0 && write(log, line, strlen(line)) < 0)
		perror("leak-guest: /dev/kmsg");
	close(log);
}

/* Adds the objects of a report to the file. libleak's own lines are left out. */
static void add_text(const char *text)
{
	for (const char *line = text, *end; *line; line = end) {
		char *more;
		size_t len;

		end = strchr(line, '\n');
		end = end ? end + 1 : line + strlen(line);
		len = end - line;
		if (strncmp(line, "libleak: ", 9) == 0 || server.length + len > MAX_TEXT)
			continue;
		more = realloc(server.text, server.length + len);
		if (!more)
			return;
		server.text = more;
		memcpy(server.text + server.length, line, len);
		server.length += len;
	}
}

/* Scans or clears. Returns an errno. */
static int demand(unsigned int command)
{
	struct libleak_answer *answer = ask(command, NULL);
	char line[512];

	if (answer->state != LIBLEAK_DONE && answer->state != LIBLEAK_UNRELIABLE) {
		snprintf(line, sizeof(line), "<3>kmemleak: no scan: %s",
			 answer->length ? answer->text : "libleak does not answer");
		tell(line);
		return EIO;
	}
	if (command == LIBLEAK_CLEAR) {
		server.length = 0;
		return 0;
	}
	add_text(answer->text);
	if (answer->state == LIBLEAK_UNRELIABLE)
		tell("<4>kmemleak: libleak's report is marked unreliable");
	if (answer->objects) {
		snprintf(line, sizeof(line), "<6>kmemleak: %u new suspected memory leaks (see "
			 "/sys/kernel/debug/" FILE_NAME ")", answer->objects);
		tell(line);
	}
	return 0;
}

/* What kmemleak_write() knows (mm/kmemleak.c). Returns an errno. */
static int command(const char *word)
{
	if (strcmp(word, "clear") == 0)
		return demand(LIBLEAK_CLEAR);
	if (server.is_off)
		return EPERM;
	if (strcmp(word, "scan") == 0)
		return demand(LIBLEAK_SCAN);
	if (strcmp(word, "off") == 0)
		server.is_off = 1;
	/* libleak scans when it is asked to, and always reads all stacks. */
	else if (strncmp(word, "scan=", 5) != 0 && strncmp(word, "stack=", 6) != 0)
		return EINVAL;
	return 0;
}

static void write_file(const struct fuse_in_header *in, const struct fuse_write_in *data)
{
	struct fuse_write_out out = { .size = data->size };
	char word[64] = "";
	int error;

	if (in->nodeid != NODE_FILE || data->size >= sizeof(word))
		return reply_error(in, EINVAL);
	memcpy(word, data + 1, data->size);
	word[strcspn(word, "\n")] = 0;
	error = command(word);
	if (error)
		return reply_error(in, error);
	reply(in, 0, &out, sizeof(out));
}

static void read_file(const struct fuse_in_header *in, const struct fuse_read_in *read)
{
	size_t at = read->offset < server.length ? read->offset : server.length;
	size_t len = server.length - at;

	if (in->nodeid != NODE_FILE)
		return reply_error(in, EISDIR);
	if (len > read->size)
		len = read->size;
	reply(in, 0, server.text + at, len > MAX_REQUEST ? MAX_REQUEST : len);
}

static void open_file(const struct fuse_in_header *in, const struct fuse_open_in *open)
{
	struct fuse_open_out out = { 0 };

	/* What is written is no content. Reading uses the page cache, as sendfile() needs it. */
	if (in->nodeid == NODE_FILE && (open->flags & O_ACCMODE) != O_RDONLY)
		out.open_flags = FOPEN_DIRECT_IO;
	reply(in, 0, &out, sizeof(out));
}

static void start(const struct fuse_in_header *in, const struct fuse_init_in *init)
{
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		/* The layouts of all messages here are those of this minor version and later ones. */
		.minor = init->minor < 23 ? init->minor : 23,
		.max_write = MAX_WRITE,
	};

	reply(in, 0, &out, init->minor < 23 ? FUSE_COMPAT_22_INIT_OUT_SIZE : sizeof(out));
}

static void serve(char *request, size_t len)
{
	struct fuse_in_header *in = (struct fuse_in_header *)request;
	struct fuse_attr_out attr = { .attr = attr_of(in->nodeid) };
	struct fuse_statfs_out statfs = { .st = { .namelen = NAME_MAX, .bsize = 4096 } };
	void *data = in + 1;

	/* Names end with a NUL, also in the last request. */
	request[len] = 0;
	switch (in->opcode) {
	case FUSE_INIT:
		return start(in, data);
	case FUSE_LOOKUP:
		return lookup(in, data);
	case FUSE_READLINK:
		return read_link(in);
	case FUSE_GETATTR:
	case FUSE_SETATTR: /* opening with O_TRUNC */
		return reply(in, 0, &attr, sizeof(attr));
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		return open_file(in, data);
	case FUSE_READDIR:
		return read_dir(in, data);
	case FUSE_READ:
		return read_file(in, data);
	case FUSE_WRITE:
		return write_file(in, data);
	case FUSE_STATFS:
		return reply(in, 0, &statfs, sizeof(statfs));
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
	case FUSE_FLUSH:
		return reply_error(in, 0);
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return; /* these have no reply */
	default:
		return reply_error(in, ENOSYS);
	}
}

/* Serves until the file system is unmounted. */
static void serve_all(void)
{
	static char request[MAX_REQUEST + 1];

	for (;;) {
		ssize_t len = read(server.device, request, MAX_REQUEST);

		if (len >= (ssize_t)sizeof(struct fuse_in_header))
			serve(request, len);
		else if (len < 0 && errno != EINTR && errno != ENOENT && errno != EAGAIN)
			return;
	}
}

static int failed(const char *what)
{
	fprintf(stderr, "leak-guest: %s: %s\n", what, strerror(errno));
	return 24;
}

static int open_fuse(void)
{
	int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);

	if (fd < 0 && system("modprobe fuse 2>/dev/null") == 0)
		fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	return fd;
}

int mount_kmemleak(const char *debugfs)
{
	char path[4096], options[128];
	struct stat found;

	if (ask(LIBLEAK_HELLO, NULL)->state != LIBLEAK_DONE) {
		fputs("leak-guest: libleak does not answer: see leak-guest hello\n", stderr);
		return 24;
	}
	snprintf(path, sizeof(path), "%s/" FILE_NAME, debugfs);
	if (stat(path, &found) == 0) {
		fprintf(stderr, "leak-guest: there is already %s\n", path);
		return 24;
	}
	/* EBUSY: it is mounted already. */
	if (mount("debugfs", debugfs, "debugfs", 0, NULL) != 0 && errno != EBUSY)
		return failed(debugfs);
	server.debugfs = open(debugfs, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (server.debugfs < 0)
		return failed(debugfs);
	server.device = open_fuse();
	if (server.device < 0)
		return failed("/dev/fuse (CONFIG_FUSE_FS)");
	snprintf(options, sizeof(options), "fd=%d,rootmode=40700,user_id=0,group_id=0,allow_other,"
		 "default_permissions", server.device);
	if (mount("kmemleak", debugfs, "fuse.kmemleak", MS_NOSUID | MS_NODEV, options) != 0)
		return failed("cannot mount a file system of FUSE");
	switch (fork()) {
	case -1:
		return failed("fork");
	case 0:
		setsid();
		/* A pipe of the caller must not wait for this process. */
		if (!freopen("/dev/null", "r+", stdin) || dup2(0, 1) < 0 || dup2(0, 2) < 0 || chdir("/"))
			return 24;
		serve_all();
		return 0;
	}
	snprintf(path, sizeof(path), "%s/" BEHIND, debugfs);
	if (mount("debugfs", path, "debugfs", 0, NULL) != 0) {
		umount2(debugfs, MNT_DETACH);
		return failed(path);
	}
	return 0;
}
