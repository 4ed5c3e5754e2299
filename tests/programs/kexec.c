// Starts the kernel that is in the guest's /kexec, which loads the module leaky.
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char command[] = "console=ttyS0 panic=-1 libleak.run=insmod:leaky";

int main(void)
{
	int kernel = open("/kexec/vmlinuz", O_RDONLY);
	int initramfs = open("/kexec/initramfs", O_RDONLY);

	if (kernel < 0 || initramfs < 0) {
		perror("/kexec");
		return 1;
	}
	if (syscall(SYS_kexec_file_load, kernel, initramfs, sizeof command, command, 0L)) {
		perror("kexec_file_load");
		return 1;
	}
	syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, 0);
	perror("reboot");
	return 1;
}
