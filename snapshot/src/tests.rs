//! A small guest is written and read back, intact and damaged.

use crate::error::ReadError;
use crate::fields::{Sink, Source};
use crate::format::{MAGIC, VERSION};
use crate::read::{Contents, Snapshot};
use crate::write::{contents, try_path, write};
use checker::guest_state::{Counters, GuestState};
use checker::names::Load;
use detector::clock::{Clock, Reading};
use detector::comms::Comms;
use detector::frozen::Objects;
use detector::guest_tests::{Test, Tests, Verdict};
use detector::objects::{self, Allocation, Kind, LiveMap};
use detector::stacks::{StackId, Stacks};
use detector::suppress::Suppressions;
use guest_symbols::kernel::Kernel;
use guest_symbols::memory::{GuestMemory, OwnedMemory, PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};
use guest_symbols::modules::Module;
use guest_symbols::symbol_file::SymbolFile;
use guest_symbols::symbols::Symbol;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

const TEXT: u64 = 0xffff_ffff_8100_0000;
const TEXT_PHYS: u64 = 0x4000;
const IMAGE: u64 = 4 * PAGE_SIZE;
const MAP: &str = "\
ffffffff81000000 T _text
ffffffff81001000 R linux_banner
ffffffff81002000 D init_top_pgt
ffffffff81004000 B _end
";

struct Guest {
    memory: OwnedMemory,
    kernel: Kernel,
    objects: Objects,
    modules: Vec<Load>,
    stacks: Stacks,
    tests: Tests,
    troubles: Vec<String>,
}

impl Guest {
    fn new() -> Guest {
        let mut memory = OwnedMemory::sparse(vec![0..0x1_0000, 0x2_0000..0x2_8000]).unwrap();
        // The banner of another kernel lies before the image. It must not be found.
        memory.write(0x1000, b"Linux version 5.4.0-other (gcc) #1");
        memory.write(TEXT_PHYS + 0x1000, b"Linux version 6.1.0-test (gcc) #1");
        memory.write(0x2_7ff8, &[7; 8]);
        let map = SymbolFile::from_map(Path::new("map"), MAP.as_bytes(), None).unwrap();
        let image = ImageOnly(&memory);
        let kernel = Kernel::find(&image, VirtAddr(TEXT), PhysAddr(TEXT_PHYS), Some(&map)).unwrap();
        let (map, comms, clock) = (LiveMap::default(), Comms::default(), Clock::default());
        clock.tick(4_294_900_000, || 50);
        for (sequence, kind) in (1..).zip([Kind::Percpu, Kind::Slab, Kind::Large, Kind::Vmalloc]) {
            let allocation = Allocation {
                kind,
                sequence,
                jiffies: 4_294_900_000 + sequence,
                stack: StackId(sequence as u32 % 3),
                pid: 12,
                tgid: 11,
                cpu: 1,
                comm: comms.intern(*b"insmod\0\0\0\0\0\0\0\0\0\0"),
            };
            map.insert(0xffff_8880_0000_0000 + 64 * sequence, allocation.into(), 100 * sequence, 0);
        }
        map.retire(0xffff_8880_0000_0080);
        map.set_reported(0xffff_8880_0000_00c0);
        let objects = Objects::of(&[&map], &comms, &clock, Reading { jiffies: 4_294_900_100, millis: 450 });
        let module = |name: &str| {
            let symbols = [Symbol { addr: 0xffff_ffff_c000_0010, kind: b't', name: "init_module" }];
            let parts = [0xffff_ffff_c000_0000..0xffff_ffff_c000_1000, 0xffff_ffff_c000_3000..0xffff_ffff_c000_4000];
            Module::from_parts(name.to_owned(), parts.to_vec(), symbols)
        };
        let stacks = Stacks::default();
        stacks.intern(&[TEXT + 8, TEXT + 0x101]);
        stacks.intern(&[TEXT + 8, TEXT + 0x102, TEXT + 0x200]);
        let mut tests = Tests::default();
        tests.line(b"ok 1 first", 2);
        tests.mark(Some(b"second"), 3);
        tests.at = tests.running.clone();
        tests.finished.push(Test { name: "gone".into(), result: None });
        tests.finished.push(Test { name: "skipped".into(), result: Some(Verdict::Skip) });
        tests.dropped = 7;
        Guest {
            tests,
            troubles: vec!["the moon is full".into()],
            stacks,
            kernel,
            objects,
            modules: vec![
                Load { sequence: 3, module: module("leaky").into() },
                Load { sequence: 5, module: module("other").into() },
            ],
            memory,
        }
    }

    fn moment(&self) -> GuestState<'_, OwnedMemory> {
        GuestState {
            kernel: &self.kernel,
            memory: &self.memory,
            objects: &self.objects,
            stacks: &self.stacks,
            lines: None,
            registers: &[1, u64::MAX],
            modules: &self.modules,
            tests: &self.tests,
            counters: Counters {
                live_map: objects::Counters { allocations: 4, ..objects::Counters::default() },
                hooks: 34,
                rewinds: 9,
                boot: 2,
                ..Counters::default()
            },
            troubles: &self.troubles,
            millis: 1234,
            min_age: Duration::from_secs(5),
            unseen: true,
            halted: true,
            traces: None,
        }
    }

    /// The contents, uncompressed.
    fn contents(&self) -> Vec<u8> {
        let mut out = Vec::new();
        contents(&mut Sink(&mut out), &self.moment(), TEXT, IMAGE).unwrap();
        out
    }
}

struct ImageOnly<'a>(&'a OwnedMemory);

impl GuestMemory for ImageOnly<'_> {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), guest_symbols::MemoryError> {
        self.0.read(at, buf)
    }
    fn ranges(&self) -> &[Range<u64>] {
        const { std::slice::from_ref(&(TEXT_PHYS..TEXT_PHYS + IMAGE)) }
    }
}

impl StoppedMemory for ImageOnly<'_> {
    fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        self.0.slice(at, len)
    }
}

/// A temporary folder of one test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("libleak-snapshot-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn file(test: &str) -> Vec<u8> {
    let folder = Folder::new(test);
    let path = folder.0.join("snapshot");
    write(&path, &Guest::new().moment()).unwrap();
    std::fs::read(&path).unwrap()
}

fn assert_same(ours: &GuestState<'_, OwnedMemory>, theirs: &GuestState<'_, OwnedMemory>) {
    assert_eq!(ours.stacks.all(), theirs.stacks.all());
    assert_eq!(ours.objects, theirs.objects);
    assert_eq!(ours.registers, theirs.registers);
    assert_eq!(ours.troubles, theirs.troubles);
    assert_eq!((ours.counters, ours.millis, ours.min_age), (theirs.counters, theirs.millis, theirs.min_age));
    assert_eq!((ours.unseen, ours.halted), (theirs.unseen, theirs.halted));
    assert_eq!((&ours.tests.finished, ours.tests.dropped), (&theirs.tests.finished, theirs.tests.dropped));
    assert_eq!((&ours.tests.stretches, &ours.tests.at), (&theirs.tests.stretches, &theirs.tests.at));
    for sequence in 0..5 {
        assert_eq!(ours.tests.of(sequence), theirs.tests.of(sequence));
    }
    assert_eq!(ours.memory.ranges(), theirs.memory.ranges());
    for range in ours.memory.ranges() {
        let all = |m: &OwnedMemory| m.run(PhysAddr(range.start), usize::MAX).to_vec();
        assert!(all(ours.memory) == all(theirs.memory), "{range:x?}");
    }
    assert_eq!(ours.kernel.release, theirs.kernel.release);
    assert!(ours.kernel.symbols.iter().eq(theirs.kernel.symbols.iter()));
    for at in (0xffff_ffff_c000_0000..0xffff_ffff_c000_0020).chain(TEXT..TEXT + 8) {
        for sequence in 0..8 {
            assert_eq!(ours.names().frame(at, sequence), theirs.names().frame(at, sequence));
        }
    }
}

#[test]
fn what_is_written_is_read_back() {
    let folder = Folder::new("round-trip");
    let path = folder.0.join("snapshot");
    let guest = Guest::new();
    // The second file replaces the first.
    for _ in 0..2 {
        let written = write(&path, &guest.moment()).unwrap();
        assert_eq!((written.ram, written.filled), (0x1_8000, 3 * PAGE_SIZE));
        assert_eq!(written.file, std::fs::metadata(&path).unwrap().len());
    }
    assert_same(&guest.moment(), &Snapshot::open(&path).unwrap().moment());
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "a temporary file stays");
}

#[test]
fn a_file_that_cannot_be_written_leaves_the_old_one() {
    let folder = Folder::new("unwritable");
    let path = folder.0.join("none/snapshot");
    for error in [write(&path, &Guest::new().moment()).unwrap_err(), try_path(&path).unwrap_err()] {
        assert!(error.to_string().contains("none/snapshot"), "{error}");
    }
    // A file cannot replace a folder.
    let path = folder.0.join("folder");
    std::fs::create_dir_all(path.join("full")).unwrap();
    let error = write(&path, &Guest::new().moment()).unwrap_err().to_string();
    assert!(error.contains("cannot write snapshot"), "{error}");
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "a temporary file stays");
    let path = folder.0.join("fine");
    try_path(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn other_files_are_named_as_such() {
    let read = |bytes: &[u8]| Snapshot::read(bytes, Path::new("a/file")).err().unwrap();
    assert!(matches!(read(b""), ReadError::NotSnapshot { .. }));
    assert!(matches!(read(b"\x7fELF and so on and on"), ReadError::NotSnapshot { .. }));
    let newer = [&MAGIC[..], &(VERSION + 1).to_le_bytes(), b"whatever"].concat();
    let error = read(&newer);
    assert!(matches!(error, ReadError::Version { found, .. } if found == VERSION + 1));
    assert!(error.to_string().contains("a/file"), "{error}");
    let missing = Snapshot::open(Path::new("no/such/file")).err().unwrap();
    assert!(matches!(missing, ReadError::Open { .. }));
}

#[test]
#[cfg_attr(miri, ignore = "so many files take hours under Miri")]
fn a_file_that_is_cut_off_or_has_a_wrong_bit_is_refused() {
    let good = file("damaged");
    assert!(Snapshot::read(&good[..], Path::new("good")).is_ok());
    // The last four bytes end the frame. Nothing reads them.
    for len in 0..good.len() - 4 {
        assert!(Snapshot::read(&good[..len], Path::new("cut")).is_err(), "{len} of {} bytes", good.len());
    }
    for bit in 0..8 * (good.len() - 4) {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Snapshot::read(&bad[..], Path::new("bad")).is_err(), "bit {bit} of {} bytes", good.len());
    }
}

#[test]
#[cfg_attr(miri, ignore = "so many files take hours under Miri")]
fn contents_with_a_wrong_bit_are_refused_or_read_without_harm() {
    let good = Guest::new().contents();
    // A few bits of each page of memory are enough.
    let offsets = (0..good.len()).filter(|&at| at < 1200 || at + 64 > good.len() || at % 61 == 0);
    for at in offsets {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            let Ok(contents) = Contents::take(&mut Source::new(&bad[..])) else { continue };
            if let Ok(kernel) = contents.find_kernel(Path::new("bad")) {
                let snapshot = Snapshot { contents, kernel };
                let moment = snapshot.moment();
                // There is no BTF, so the check fails. It must not panic.
                assert!(moment.check(Some("insmod"), &Suppressions::default()).is_err());
                for (_, o) in moment.objects.list() {
                    moment.names().frames(o);
                }
            }
        }
        assert!(Contents::take(&mut Source::new(&good[..at])).is_err(), "cut at {at}");
    }
}

#[test]
fn flaws_say_what_and_where() {
    let guest = Guest::new();
    let message = |contents: &[u8]| match Contents::take(&mut Source::new(contents)).err() {
        Some(crate::ram::TakeError::Flaw(f)) => format!("{} {}: {}", f.part, f.at, f.why),
        Some(crate::ram::TakeError::NoRoom(bytes)) => format!("no room for {bytes}"),
        None => "fine".to_owned(),
    };
    let mut contents = guest.contents();
    contents[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(message(&contents), "kernel 4: 4294967295 exceeds the limit of 65536");
    // The object's address finds its record.
    let contents = guest.contents();
    let second = guest.objects.list()[1].0.to_le_bytes();
    let at = contents.windows(8).position(|w| w == second).unwrap();
    let with = |offset: usize, byte: u8| {
        let mut bad = contents.clone();
        bad[at + offset] = byte;
        message(&bad)
    };
    assert!(with(15, 0x80).starts_with("objects ") && with(15, 0x80).contains("unknown kind"), "{}", with(15, 0x80));
    assert!(with(0, 0).contains("comes after a higher one"), "{}", with(0, 0));
    // The first size belongs to the first object.
    let first = guest.objects.list()[0].0.to_le_bytes();
    let at = contents.windows(8).position(|w| w == first).unwrap();
    let with = |offset: usize, byte: u8| {
        let mut bad = contents.clone();
        bad[at + offset] = byte;
        message(&bad)
    };
    assert!(with(8, 9).ends_with("unknown kind 9"), "{}", with(8, 9));
    assert!(with(16, 1).contains("an object of 72057594037928036 bytes"), "{}", with(16, 1));
    // A range of RAM up to the largest physical address.
    let end = 0x2_8000u64.to_le_bytes();
    let at = contents.windows(8).position(|w| w == end).unwrap();
    let mut bad = contents.clone();
    bad[at..at + 8].copy_from_slice(&(1u64 << 52).to_le_bytes());
    // Under Miri a failed allocation ends the process.
    if !cfg!(miri) {
        assert!(message(&bad).starts_with("no room for"), "{}", message(&bad));
    }
}

#[test]
fn another_kernel_than_was_tracked_is_refused() {
    let mut guest = Guest::new();
    guest.memory.write(TEXT_PHYS + 0x1000, b"Linux version 6.2.0-test (gcc) #1");
    let contents = Contents::take(&mut Source::new(&guest.contents()[..])).ok().unwrap();
    let error = contents.find_kernel(Path::new("a/file")).err().unwrap().to_string();
    assert!(error.contains("6.2.0-test with 4 symbols") && error.contains("6.1.0-test"), "{error}");
}
