//! Guests that hibernate. Memory returns to the moment of the image, and so does the live map.

use std::fs::File;
use std::path::PathBuf;
use tests::assert_fields;
use tests::planted::{self, Differences};
use tests::program::scratch;
use tests::{Boot, Guest, Lost, Unreferenced, hidden};

const KERNEL: &str = "bookworm-backports";
/// Number of objects that the module `leaky` loses.
const PLANTED: usize = 8;
/// Number of objects that the module `grower` holds at hibernation, and loses after the resume.
const GROWN: usize = 50;
/// Number of objects that it allocates and loses after that.
const LOST: usize = 20;

/// Finds the disk. If it has an image, resumes from it.
const RESUME: &str = "#!/bin/sh
modprobe virtio_pci
modprobe virtio_blk
i=0
while [ ! -b /dev/vda ] && [ $i -lt 50 ]; do
    usleep 100000
    i=$((i + 1))
done
if dd if=/dev/vda bs=4096 count=1 2>/dev/null | tail -c 10 | grep -q S1SUSPEND; then
    cat /sys/block/vda/dev >/sys/power/resume
    exit 1
fi
mkswap /dev/vda >/dev/null && swapon /dev/vda
";
/// Loses some objects and holds others, hibernates, and continues after the resume.
const HIBERNATE: &str = "#!/bin/sh
[ \"$1\" = shutdown ] || insmod /modules/leaky.ko
insmod /modules/grower.ko
echo 50 >/sys/module/grower/parameters/add
cat /sys/block/vda/dev >/sys/power/resume
echo \"$1\" >/sys/power/disk && echo disk >/sys/power/state || exit 1
swapoff /dev/vda
";
/// Loses the objects that were held since before, and new ones.
const LOSE: &str = "#!/bin/sh
echo 1 >/sys/module/grower/parameters/drop
echo 20 >/sys/module/grower/parameters/lose
rmmod grower
[ -d /sys/module/leaky ] || insmod /modules/leaky.ko
";

/// A guest with a disk that images are written to.
struct Machine {
    disk: PathBuf,
}

impl Machine {
    fn new(test: &str) -> Machine {
        let disk = scratch(&format!("{test}-files")).join("disk");
        File::create(&disk).and_then(|file| file.set_len(700 << 20)).expect("a disk");
        Machine { disk }
    }

    fn guest(&self, test: &str, how: &str) -> Guest {
        let hibernate = format!("hibernate:{how}");
        Guest::new(test, KERNEL)
            .kmods("virtio_pci,virtio_blk")
            .module("leaky")
            .module("grower")
            .script("resume", RESUME)
            .script("hibernate", HIBERNATE)
            .script("lose", LOSE)
            // On a busy host a kernel may find that its timer does not work, and panic.
            .append("hibernate=nocompress no_timer_check")
            .run(&["resume", &hibernate, "lose"])
            .qemu_arg("-drive")
            .qemu_arg(&format!("file={},if=none,id=disk,format=raw", self.disk.display()))
            .qemu_arg("-device")
            .qemu_arg("virtio-blk-pci,drive=disk")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The file is large and not needed any more.
        let _ = std::fs::remove_file(&self.disk);
    }
}

fn is_of(object: &Unreferenced, function: &str) -> bool {
    object.frames.iter().any(|frame| planted::is_frame_of(frame, function, "grower"))
}

/// Removes from a report the objects that the module `grower` lost, and compares them with the
/// module's output.
fn take_grown(boot: &Boot, objects: &mut Vec<Unreferenced>) {
    let dropped = boot.console.lines().filter_map(|line| line.split_once("grower: dropped 0x"));
    let dropped: Vec<u64> = dropped.filter_map(|(_, address)| u64::from_str_radix(address.trim(), 16).ok()).collect();
    assert_eq!(dropped.len(), GROWN, "{}", boot.hint());
    let before = objects.len();
    objects.retain(|object| !is_of(object, "grower_lose"));
    let lost = before - objects.len();
    assert!(lost <= LOST, "{lost} of {LOST} objects lost after the resume; {}", boot.hint());
    let mut missing: Vec<Lost> = (lost..LOST).map(|number| Lost::alone(number as u64)).collect();
    for address in dropped {
        let Some(at) = objects.iter().position(|object| object.address == address) else {
            missing.push(Lost::alone(address));
            continue;
        };
        let object = objects.remove(at);
        // It was allocated before the image, so it has its frames of that time.
        let is_as_allocated = is_of(&object, "grower_add") && object.size == 256;
        assert!(is_as_allocated, "not as grower allocated it: {object:x?}; {}", boot.hint());
    }
    hidden::count("grower", &missing, &boot.hint());
}

/// No object is unknown, although the guest's time has changed.
fn assert_trustworthy(boot: &Boot) {
    for report in boot.reports() {
        assert!(report.summary.is_trustworthy(), "{}; {}", report.summary.line, boot.hint());
    }
    assert!(!boot.stderr.contains("another time"), "{}", boot.hint());
}

/// The first kernel hibernates, and the machine is reset. The second boots, finds the image, and
/// restores the first.
#[test]
fn a_kernel_that_another_one_resumes() {
    let machine = Machine::new("hibernation-disk");
    let boot = machine.guest("hibernation-disk", "reboot").reboots().boot();
    boot.assert_ended_well();
    assert_trustworthy(&boot);
    let (planted, reports) = (planted::planted(&boot.console), boot.reports());
    let [hibernated, other, resumed] = &reports[..] else { panic!("{} reports; {}", reports.len(), boot.hint()) };
    assert!(boot.stderr.contains("this is boot 2 of the guest"), "{}", boot.hint());
    assert!(other.objects.is_empty(), "{}", boot.hint());
    assert_eq!(planted.len(), PLANTED, "{}", boot.hint());
    let mut objects = resumed.objects.clone();
    take_grown(&boot, &mut objects);
    let mut differences = Differences::default();
    // Leaks from before the image were reported when the machine was reset, and are not reported
    // again.
    differences.extend(planted::differences(&planted, &hibernated.objects));
    differences.extend(planted::differences(&[], &objects));
    boot.assert_agrees(&differences);
}

/// The kernel writes the image and at once returns to its moment. Its allocations and frees since
/// then are undone.
#[test]
fn a_kernel_that_goes_back_to_its_own_image() {
    let machine = Machine::new("hibernation-test");
    // Only frame numbers refer to the pages that the kernel allocates for the image.
    let boot = machine.guest("hibernation-test", "test_resume").option("pages=on").boot();
    boot.assert_ended_well();
    assert_trustworthy(&boot);
    let (planted, reports) = (planted::planted(&boot.console), boot.reports());
    let [left, end] = &reports[..] else { panic!("{} reports; {}", reports.len(), boot.hint()) };
    assert_eq!(planted.len(), PLANTED, "{}", boot.hint());
    let mut objects = end.objects.clone();
    take_grown(&boot, &mut objects);
    // The kernel's copies of memory exist at that moment. They hide no leak.
    let mut differences = planted::differences(&planted, &left.objects);
    differences.extend(planted::differences(&[], &objects));
    boot.assert_agrees(&differences);
}

/// The first kernel hibernated in another QEMU. Its allocations there are not known, as after
/// -loadvm.
#[test]
fn a_kernel_that_hibernated_elsewhere() {
    let machine = Machine::new("hibernation-elsewhere");
    let before = machine.guest("hibernation-before", "shutdown").without_plugin().boot();
    assert!(before.console.contains("PM: Image saving done"), "{}", before.hint());
    let boot = machine.guest("hibernation-elsewhere", "shutdown").boot();
    assert_eq!((boot.status, boot.messages()), (Some(0), vec![]), "{}\n{}", boot.hint(), boot.stderr);
    assert!(boot.console.contains("libleak-guest: end lose 0"), "{}", boot.hint());
    let (planted, reports) = (planted::planted(&boot.console), boot.reports());
    let [other, resumed] = &reports[..] else { panic!("{} reports; {}", reports.len(), boot.hint()) };
    assert_fields!(boot.hint(); other.objects.is_empty() => true, other.summary.is_trustworthy() => true);
    assert!(boot.stderr.contains("brought to another time (loadvm, resume from disk)"), "{}", boot.hint());
    assert_eq!(planted.len(), PLANTED, "{}", boot.hint());
    let mut objects = resumed.objects.clone();
    objects.retain(|object| !is_of(object, "grower_lose"));
    assert_eq!(resumed.objects.len() - objects.len(), LOST, "{}", boot.hint());
    let differences = planted::differences(&planted, &objects);
    boot.assert_agrees(&differences);
}
