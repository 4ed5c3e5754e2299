//! Symbol files, kernel images, and a snapshot.

use super::after;
use checker::guest_state::{Counters, GuestState};
use checker::names::Load;
use detector::clock::{Clock, Reading};
use detector::comms::Comms;
use detector::frozen::Objects;
use detector::guest_tests::Tests;
use detector::objects::{self, Allocation, Kind, LiveMap};
use detector::stacks::{StackId, Stacks};
use guest_symbols::Kernel;
use guest_symbols::memory::{OwnedMemory, PhysAddr, VirtAddr};
use guest_symbols::modules::Module;
use guest_symbols::symbol_file::SymbolFile;
use guest_symbols::symbols::Symbol;
use lz4_flex::frame::FrameDecoder;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

const MAP: &str = "\
0000000000001000 A per_cpu
ffffffff81000000 T _text
ffffffff81001000 R linux_banner
ffffffff81002000 D init_top_pgt
ffffffff81004000 B _end
";

pub(super) fn symbols() -> Vec<Vec<u8>> {
    let saved = "ffffffff81000000 T _text\nffffffff81001000 R linux_banner\nffffffffc0000000 t init_module\t[leaky]\n";
    vec![MAP.into(), saved.into(), elf()]
}

/// A vmlinux with a banner, three symbols and a build ID, in one segment.
fn elf() -> Vec<u8> {
    let text = 0xffff_ffff_8120_0000u64;
    let mut strings = b"\0_text\0linux_banner\0__start_notes\0".to_vec();
    let names = b"\0.text\0.symtab\0.strtab\0.notes\0".to_vec();
    strings.resize(40, 0);
    let mut code = vec![0x90; 64];
    code.extend(b"Linux version 6.1.0-test (gcc) #1\n\0");
    code.resize(128, 0);
    let notes = [&[4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0][..], b"GNU\0", &[7; 20]].concat();
    let symbol = |name: u32, kind: u8, section: u16, at: u64| {
        [&name.to_le_bytes()[..], &[kind, 0], &section.to_le_bytes(), &at.to_le_bytes(), &[0; 8]].concat()
    };
    let symbols =
        [vec![0; 24], symbol(1, 0x12, 1, text), symbol(7, 0x11, 1, text + 64), symbol(20, 0x10, 4, text + 128)]
            .concat();
    let parts = [&code[..], &notes[..], &[0; 4], &symbols, &strings, &names];
    let place = |part: usize| 64 + 56 + parts[..part].iter().map(|p| p.len() as u64).sum::<u64>();
    let section = |name: u32, kind: u32, flags: u64, addr: u64, part: usize, link: u32, entry: u64| {
        let words = [flags, addr, place(part), parts[part].len() as u64];
        let head = [name, kind].map(u32::to_le_bytes).concat();
        let tail = [&[link, 1].map(u32::to_le_bytes).concat()[..], &[8, entry].map(u64::to_le_bytes).concat()].concat();
        [head, words.map(u64::to_le_bytes).concat(), tail].concat()
    };
    let sections = [
        vec![0; 64],
        section(1, 1, 6, text, 0, 0, 0),
        section(7, 2, 0, 0, 3, 3, 24),
        section(15, 3, 0, 0, 4, 0, 0),
        section(23, 7, 2, text + 128, 1, 0, 0),
        section(0, 3, 0, 0, 5, 0, 0),
    ];
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    out.extend([2u16, 62].map(u16::to_le_bytes).concat());
    out.extend(1u32.to_le_bytes());
    out.extend([text, 64, place(parts.len())].map(u64::to_le_bytes).concat());
    out.extend(0u32.to_le_bytes());
    out.extend([64u16, 56, 1, 64, sections.len() as u16, 5].map(u16::to_le_bytes).concat());
    out.extend([1u32, 5].map(u32::to_le_bytes).concat());
    out.extend([120u64, text, 0x100_0000, 128 + 40, 128 + 40, 4096].map(u64::to_le_bytes).concat());
    parts.iter().for_each(|part| out.extend(*part));
    out.extend(sections.concat());
    out
}

pub(super) fn boot_images() -> Vec<Vec<u8>> {
    // The output of gzip, xz, zstd and lz4 -l for "hello\n".
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcbH\xcd\xc9\xc9\xe7\x02\x00 0:6\x06\x00\x00\x00";
    let xz = b"\xfd\x37\x7a\x58\x5a\x00\x00\x01\x69\x22\xde\x36\x02\x00\x21\x01\x16\x00\x00\x00\x74\x2f\xe5\xa3\x01\x00\x05\x68\x65\x6c\x6c\x6f\
        \x0a\x00\x00\x00\x20\x30\x3a\x36\x00\x01\x1a\x06\xc5\xea\xc8\x79\x90\x42\x99\x0d\x01\x00\x00\x00\x00\x01\x59\x5a";
    let zstd = b"\x28\xb5\x2f\xfd\x04\x58\x31\x00\x00\x68\x65\x6c\x6c\x6f\x0a\x53\x88\xbd\x91";
    let lz4 = b"\x02\x21\x4c\x18\x07\x00\x00\x00\x60hello\n\x06\x00\x00\x00";
    let payloads = [&gzip[..], xz, zstd, lz4].into_iter().map(|payload| after(1, payload));
    let elf = elf();
    let block = lz4_flex::block::compress(&elf);
    let packed = [&lz4[..4], &(block.len() as u32).to_le_bytes(), &block, &(elf.len() as u32).to_le_bytes()].concat();
    payloads.chain([after(0, &elf), after(1, &packed)]).collect()
}

#[cfg(test)]
#[test]
fn all_of_it_is_read() {
    for image in boot_images().iter().filter(|image| image[0] == 1) {
        cli::image::unpack(&crate::files::boot(&image[1..])).unwrap();
    }
    for file in symbols() {
        SymbolFile::parse(Path::new("a file"), &file).unwrap();
    }
    assert!(cli::image::load(&elf()).is_ok());
}

/// The uncompressed contents of a small guest's snapshot.
pub(super) fn snapshot() -> Vec<u8> {
    const TEXT: u64 = 0xffff_ffff_8100_0000;
    const PHYS: u64 = 0x1000;
    let mut memory = OwnedMemory::sparse(vec![0..0x6000, 0x8000..0x9000]).expect("memory");
    memory.write(PHYS + 0x1000, b"Linux version 6.1.0-test (gcc) #1");
    let map = SymbolFile::from_map(Path::new("map"), MAP.as_bytes(), None).expect("a map");
    let kernel = Kernel::find(&memory, VirtAddr(TEXT), PhysAddr(PHYS), Some(&map)).expect("a kernel");
    let (map, comms, clock) = (LiveMap::default(), Comms::default(), Clock::default());
    for (sequence, kind) in (1..).zip([Kind::Percpu, Kind::Slab, Kind::Large, Kind::Vmalloc]) {
        let comm = comms.intern(*b"insmod\0\0\0\0\0\0\0\0\0\0");
        let stack = StackId(sequence as u32 % 2);
        let jiffies = 4_294_900_000 + sequence;
        let allocation = Allocation { kind, sequence, jiffies, stack, pid: 12, tgid: 11, cpu: 1, comm };
        map.insert(0xffff_8880_0000_0000 + 64 * sequence, allocation.into(), 100 * sequence, 0);
    }
    let objects = Objects::of(&[&map], &comms, &clock, Reading { jiffies: 4_294_900_100, millis: 450 });
    let stacks = Stacks::default();
    stacks.intern(&[TEXT + 8, TEXT + 0x101]);
    let symbols = [Symbol { addr: 0xffff_ffff_c000_0010, kind: b't', name: "init_module" }];
    let ranges = std::iter::once(0xffff_ffff_c000_0000..0xffff_ffff_c000_1000).collect();
    let modules = [Load { sequence: 3, module: Module::from_parts("leaky".into(), ranges, symbols).into() }];
    let mut tests = Tests::default();
    tests.line(b"ok 1 first", 2);
    tests.mark(Some(b"second"), 3);
    let moment = GuestState {
        kernel: &kernel,
        memory: &memory,
        objects: &objects,
        stacks: &stacks,
        lines: None,
        registers: &[1, u64::MAX],
        modules: &modules,
        tests: &tests,
        counters: Counters {
            live_map: objects::Counters { allocations: 4, ..objects::Counters::default() },
            hooks: 34,
            ..Counters::default()
        },
        troubles: &[],
        halted: false,
        traces: None,
        millis: 1234,
        min_age: Duration::from_secs(5),
        unseen: true,
    };
    let path = std::env::temp_dir().join(format!("libleak-seed-{}", std::process::id()));
    snapshot::write(&path, &moment).expect("a snapshot");
    let file = std::fs::read(&path).expect("what was written");
    std::fs::remove_file(&path).expect("what was written");
    let mut contents = Vec::new();
    FrameDecoder::new(&file[snapshot::MAGIC.len() + 4..]).read_to_end(&mut contents).expect("what was written");
    contents
}
