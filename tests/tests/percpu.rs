//! Per-CPU memory that only live blocks make a reference is as large as the kernel says. What is
//! behind it in a CPU's unit belongs to the page allocator, and may refer to any object.

use guest_symbols::percpu::PerCpu;
use snapshot::Snapshot;
use tests::Guest;
use tests::program::scratch;

/// CPUs of the guests.
const CPUS: u64 = 2;

/// The number after the letter in the kernel's line
/// `percpu: Embedded 66 pages/cpu s233472 r8192 d28672 u1048576` (pcpu_embed_first_chunk()).
fn size(line: &str, letter: char) -> u64 {
    let number = line.split_whitespace().find_map(|word| word.strip_prefix(letter)?.parse().ok());
    number.unwrap_or_else(|| panic!("no {letter} in: {line}"))
}

fn what_the_kernel_set_up_is_left_out(kernel: &str) {
    let test = format!("percpu-{kernel}");
    let file = scratch(&format!("{test}-file")).join("snapshot");
    let guest = Guest::new(&test, kernel).option(&format!("snapshot={}", file.display())).run(&["sleep:1"]);
    let boot = guest.boot();
    boot.assert_ended_well();
    let line = boot.console.lines().find(|line| line.contains("percpu: Embedded"));
    let line = line.unwrap_or_else(|| panic!("no line of the kernel; {}", boot.hint()));
    let snapshot = Snapshot::open(&file).unwrap_or_else(|why| panic!("{why}; {}", boot.hint()));
    let moment = snapshot.moment();
    let base = moment.kernel.variable(moment.memory, "pcpu_base_addr").expect("pcpu_base_addr");
    let units = base..base + CPUS * size(line, 'u');
    let found = PerCpu::read(moment.kernel, moment.memory).dynamic;
    let of_first_units: u64 = found.iter().filter(|r| units.contains(&r.start)).map(|r| r.end - r.start).sum();
    let reserved_and_dynamic = size(line, 'r') + size(line, 'd');
    assert_eq!(of_first_units, CPUS * reserved_and_dynamic, "{line}: {found:x?}; {}", boot.hint());
}

#[test]
fn what_the_kernel_set_up_is_left_out_on_linux_6_1() {
    what_the_kernel_set_up_is_left_out("bookworm");
}

#[test]
fn what_the_kernel_set_up_is_left_out_on_linux_6_12() {
    what_the_kernel_set_up_is_left_out("bookworm-backports");
}

#[test]
fn what_the_kernel_set_up_is_left_out_on_linux_7_3() {
    what_the_kernel_set_up_is_left_out("trixie-backports");
}
