// SPDX-License-Identifier: GPL-2.0
/*
 * A histogram of events saves a field. Another histogram of the same event has a variable of that
 * name. create_field_var() then frees the field, and not the name of its type. An event made at run
 * time has such names in memory of their own.
 */
#include "leaks.h"
#include <sys/mount.h>
#include <sys/stat.h>

#define TRACING "/tmp/tracing/"
#define TRIGGER TRACING "events/synthetic/leaks/trigger"

int main(void)
{
	must(mkdir("/tmp/tracing", 0755));
	must(mount("leaks", "/tmp/tracing", "tracefs", 0, NULL));
	must(put(TRACING "synthetic_events", "leaks int key; int field"));
	must(put(TRIGGER, "hist:keys=key:field=common_timestamp"));
	for (int i = 0; i < TIMES; i++)
		must_fail(put(TRIGGER, "hist:keys=field:time=common_timestamp:onmax($time).save(field)"), EINVAL);
	must(put(TRIGGER, "!hist:keys=key:field=common_timestamp"));
	must(put(TRACING "synthetic_events", "!leaks int key; int field"));
	must(umount("/tmp/tracing"));
	return triggered("hist_variable");
}
