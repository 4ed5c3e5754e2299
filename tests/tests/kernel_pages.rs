//! Pages that the kernel owns and that are not ordinary kernel memory: compressed memory, huge
//! pages, and pages that programs make the kernel allocate. With `pages=on`, none of them is
//! reported, and none of them is searched for references.

use tests::{Boot, Guest, planted};

/// Swap on zram, and a process that needs it. To 6.11 the compression is in a module of its own.
const ZRAM: &str = "#!/bin/sh
modprobe zram || exit 1
echo $((400 << 20)) >/sys/block/zram0/disksize
mkswap /dev/zram0 >/dev/null && swapon /dev/zram0 || exit 1
/guest/hog 280 || exit 1
set -- $(cat /sys/block/zram0/mm_stat)
echo \"zram: $1 bytes\"
";

/// Bytes that zram must hold, before compression: hundreds of zspages of more than one page.
const ENOUGH: u64 = 16 << 20;

/// Number in the console's first line that begins with `before`.
fn number(boot: &Boot, before: &str) -> u64 {
    let found =
        boot.console.lines().find_map(|line| line.strip_prefix(before)?.split_whitespace().next()?.parse().ok());
    found.unwrap_or_else(|| panic!("no \"{before}\"; {}", boot.hint()))
}

fn pages_of_zram_are_not_lost(kernel: &str) {
    let boot = Guest::new(&format!("pages-zram-{kernel}"), kernel)
        .memory(320)
        .kmods("zram,lzo_rle")
        .program("hog")
        .script("zram", ZRAM)
        .option("pages=on")
        .run(&["zram"])
        .boot();
    boot.assert_ended_well();
    assert!(number(&boot, "zram: ") > ENOUGH, "{}", boot.hint());
    assert_eq!(boot.report().objects, [], "{}", boot.hint());
    boot.assert_trustworthy();
}

#[test]
fn pages_of_zram_are_not_lost_on_linux_6_1() {
    pages_of_zram_are_not_lost("bookworm");
}

#[test]
fn pages_of_zram_are_not_lost_on_linux_6_12() {
    pages_of_zram_are_not_lost("bookworm-backports");
}

#[test]
fn pages_of_zram_are_not_lost_on_linux_7_3() {
    pages_of_zram_are_not_lost("trixie-backports");
}

/// The addresses of lost objects are in huge pages that a program uses or has freed. A page of 1
/// GiB stays in the pool.
fn huge_pages_are_no_roots(kernel: &str) {
    let boot = Guest::new(&format!("pages-huge-{kernel}"), kernel)
        // So much memory contains a free GiB at a multiple of its size.
        .memory(3072)
        .cpu("max")
        .append("nokaslr hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=16")
        .module("leaky")
        .losing(planted::lost)
        .program("huge")
        .script("huge-pages", "#!/bin/sh\n/guest/huge && cat /proc/meminfo\n")
        .run(&["insmod:leaky", "huge-pages"])
        .boot();
    boot.assert_ended_well();
    assert_eq!(number(&boot, "huge: "), 8, "{}", boot.hint());
    assert_eq!(number(&boot, "Hugetlb:"), (1 << 20) + 16 * 2048, "{}", boot.hint());
    assert_eq!(number(&boot, "HugePages_Free:"), 15, "{}", boot.hint());
    assert!(number(&boot, "AnonHugePages:") >= 8192, "{}", boot.hint());
    let report = boot.report();
    boot.assert_planted(&report.objects);
    boot.assert_trustworthy();
    // Some 21 MiB; the huge pages alone are 1056.
    assert!(report.summary.root_mib < 64, "{}", report.summary.line);
}

#[test]
fn huge_pages_are_no_roots_on_linux_6_1() {
    huge_pages_are_no_roots("bookworm");
}

#[test]
fn huge_pages_are_no_roots_on_linux_6_12() {
    huge_pages_are_no_roots("bookworm-backports");
}

#[test]
fn huge_pages_are_no_roots_on_linux_7_3() {
    huge_pages_are_no_roots("trixie-backports");
}

/// Network devices whose buffers are pages, and a program that makes the kernel allocate pages in
/// every known way.
const TAKE: &str = "#!/bin/sh
for module in virtio_pci virtio_net tun vhost_net; do modprobe $module; done
ifconfig eth0 10.0.2.15 up && ping -q -c 2 10.0.2.2 >/dev/null && echo 'pages: virtio_net ok'
/guest/pages || exit 1
mount -t tracefs tracefs /sys/kernel/tracing
echo 800 >/sys/kernel/tracing/buffer_size_kb
echo 1 >/sys/kernel/tracing/events/sched/enable && echo 'pages: trace ok'
sleep 1
";

fn pages_that_programs_have_taken_are_not_lost(kernel: &str) {
    let boot = Guest::new(&format!("pages-taken-{kernel}"), kernel)
        // Reserved only by kernels that have it.
        .append("secretmem.enable=1 cma=64M")
        .kmods("virtio_pci,virtio_net,tun,vhost_net")
        .program("pages")
        .script("take", TAKE)
        .option("pages=on")
        .run(&["take", "workload"])
        .qemu_arg("-netdev")
        .qemu_arg("user,id=net")
        .qemu_arg("-device")
        .qemu_arg("virtio-net-pci,netdev=net")
        .boot();
    boot.assert_ended_well();
    let ways = ["virtio_net", "perf", "io_uring", "secretmem", "queued", "xdp", "tun", "vhost", "packet", "trace"];
    for way in ways {
        assert!(boot.console.lines().any(|line| line == format!("pages: {way} ok")), "no {way}; {}", boot.hint());
    }
    assert_eq!(boot.report().objects, [], "{}", boot.hint());
    boot.assert_trustworthy();
}

#[test]
fn pages_that_programs_have_taken_are_not_lost_on_linux_6_12() {
    pages_that_programs_have_taken_are_not_lost("bookworm-backports");
}

#[test]
fn pages_that_programs_have_taken_are_not_lost_on_linux_7_3() {
    pages_that_programs_have_taken_are_not_lost("trixie-backports");
}
