//! A whole check of a guest that has corrupted its memory, and its report.

use crate::guest::{self, Budget, Guest};
use crate::input::Input;
use checker::report::{Asked, report};
use checker::sites::Sites;
use detector::control::By;
use detector::frozen::{Objects, Size};
use detector::objects::{Kind, Object};
use detector::report::{Format, json};
use detector::suppress::Suppressions;
use guest_symbols::kernel::KernelError;
use guest_symbols::memory::{GuestMemory, MemoryError, PhysAddr, StoppedMemory};
use guest_symbols::{Kernel, VirtAddr};
use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;

/// As for single structures.
const READS: u64 = 60_000_000;
const BYTES: u64 = 16 << 30;
/// Most bytes of a report about a guest with 13,000 objects.
const MAX_REPORT: usize = 64 << 20;

thread_local! { static GUEST: RefCell<Option<Guest>> = const { RefCell::new(None) } }

/// The first byte selects options. The second is the number of changed objects in the live map.
/// Then follow these, 17 bytes each, and patches.
pub fn check(data: &[u8]) {
    let make = || {
        Guest::new(|snapshot, memory| {
            let moment = snapshot.moment();
            let _ = moment.with_memory(memory).check(Some("leaky"), &Suppressions::default());
        })
    };
    guest::with(&GUEST, make, |guest| {
        let mut input = Input(data);
        let (asked, changed) = (input.u8(), input.u8());
        let objects = objects(guest.snapshot().moment().objects, &mut input, changed.into());
        let registers: Vec<u64> = (0..asked >> 6).map(|_| input.u64()).collect();
        guest.spoilt(&mut input, |guest| hold(guest, &objects, &registers, asked));
    });
}

/// The objects, some of them moved, of another kind, or of any size.
fn objects(from: &Objects, input: &mut Input<'_>, changed: usize) -> Objects {
    let mut list = from.list().to_vec();
    let mut sizes = from.sizes();
    for _ in 0..changed.min(8) {
        let (what, number, value) = (input.u8(), input.u32() as usize, input.u64());
        let number = number % list.len();
        match what % 4 {
            0 => list[number].0 = value,
            1 => list[number].0 = list[number].0.wrapping_add_signed((value as i16).into()),
            2 => {
                let [a, b, c] = list[number].1.to_words();
                let changed = Object::from_words([a ^ value, b, c ^ value << 32]);
                list[number].1 = changed.unwrap_or(list[number].1);
            }
            _ => {
                let kinds = [Kind::Slab, Kind::Large, Kind::Vmalloc, Kind::Percpu, Kind::Pages];
                // Snapshots and hooks have the same bound.
                let kind = kinds[usize::from(what >> 4) % kinds.len()];
                sizes.push(Size { addr: list[number].0, kind, bytes: value & ((1 << 40) - 1) });
            }
        }
    }
    list.sort_unstable_by_key(|(at, _)| *at);
    Objects::from_parts(list, sizes, from.comms().to_vec(), from.readings().to_vec())
}

fn hold(guest: &Guest, objects: &Objects, registers: &[u64], asked: u8) {
    let pristine = guest.snapshot().moment();
    let memory = Budget::new(guest.memory(), READS, BYTES);
    let found;
    let mut moment = pristine.with_memory(&memory);
    // The kernel is searched only if its tables may differ, since that takes longest.
    if asked & 3 == 3 {
        match find(guest) {
            Ok(kernel) => found = kernel,
            Err(why) => return assert!(!why.to_string().is_empty()),
        }
        moment.kernel = &found;
    }
    moment.objects = objects;
    moment.registers = if registers.is_empty() { pristine.registers } else { registers };
    moment.unseen = asked & 4 != 0;
    let why = (asked & 8 != 0).then_some("leaky");
    let supp = if asked & 16 != 0 { &b"leak:leak_list\nleak:^kmem*$\n"[..] } else { b"" };
    let suppressions = Suppressions::parse(Path::new("file"), supp).expect("suppressions");
    let Ok(outcome) = moment.check(why, &suppressions) else { return };
    let live = outcome.live.objects;
    assert!(outcome.unreferenced.len() as u64 <= live);
    assert!(outcome.unreferenced.iter().all(|u| u.leak.head.len() <= 32));
    let asked_for = Asked { audit: asked & 32 != 0, pause: None, suppressions: &suppressions, unused: true };
    let report = report(moment.names(), &outcome, &moment.counters, asked_for);
    let leaks: usize = report.groups.iter().map(|g| g.leaks.len()).sum();
    assert_eq!(leaks, outcome.unreferenced.len(), "each leak is in one group");
    for (format, each) in [(Format::Text, asked & 32 != 0), (Format::Console, false), (Format::JsonLines, true)] {
        let text = format.write(&report, each);
        assert!(text.len() <= MAX_REPORT, "a report of {} bytes", text.len());
        let odd = text.lines().find(|line| line.chars().any(|c| c.is_control() && c != '\t'));
        assert_eq!(odd, None, "a control character is printed");
    }
    assert_eq!(json::read(&json::write(&report)).expect("its own lines"), [report]);
    if asked & 32 != 0 {
        let sites = Sites::of(&moment).expect("a check was made");
        assert_eq!(sites.total(), outcome.live);
        let _ = sites.top(moment.names(), By::Stack);
    }
}

/// The image, as RAM.
struct Image<'a>(&'a Guest, Range<u64>);

impl GuestMemory for Image<'_> {
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.0.memory().read(at, buf)
    }

    fn ranges(&self) -> &[Range<u64>] {
        std::slice::from_ref(&self.1)
    }
}

impl StoppedMemory for Image<'_> {
    fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        self.0.memory().slice(at, len)
    }
}

fn find(guest: &Guest) -> Result<Kernel, KernelError> {
    let kernel = guest.kernel();
    let place = |name: &str| kernel.symbol(name).unwrap_or(VirtAddr(0));
    let (text, end) = (place("_text"), place("_end"));
    let phys = kernel.image_phys(text);
    let image = Image(guest, phys.0..kernel.image_phys(end).0);
    Kernel::find(&image, text, phys, None)
}
