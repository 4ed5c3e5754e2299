//! The kernel's own symbol table.

use crate::guest::Guest;
use crate::input::Input;
use guest_symbols::kallsyms;
use guest_symbols::memory::{GuestMemory, PhysAddr, StoppedMemory};
use guest_symbols::symbols::SymbolTable;
use std::cell::RefCell;
use std::ops::Range;

/// The address of small images.
pub const BASE: u64 = 0xffff_ffff_8100_0000;
/// Symbols that are looked up.
const SOME: usize = 300;
/// Most bytes of a name.
const MAX_NAME: usize = 511;

/// The image of a real kernel, and the table's offset in it.
struct Image {
    bytes: Vec<u8>,
    base: u64,
    table: Range<usize>,
}

impl Image {
    fn new() -> Image {
        let guest = Guest::new(|_, memory| {
            let _ = memory.read_u64(PhysAddr(memory.ranges()[0].start));
        });
        let kernel = guest.kernel();
        let place = |name: &str| kernel.symbol(name).expect("a symbol of the image");
        let (start, end) = (place("_text"), place("_end"));
        let bytes = guest.memory().run(kernel.image_phys(start), (end.0 - start.0) as usize).to_vec();
        let table = kallsyms::decode(&bytes, start.0, None).expect("the table").place;
        Image { bytes, base: start.0, table }
    }
}

/// The first byte selects the input that follows: an image, or changes to the table of the
/// snapshot's kernel.
pub fn check(data: &[u8]) {
    thread_local! { static IMAGE: RefCell<Option<Image>> = const { RefCell::new(None) } }
    let mut input = Input(data);
    if input.u8() & 3 != 3 {
        return hold(input.0, BASE);
    }
    IMAGE.with(|image| {
        let mut image = image.borrow_mut();
        let Image { bytes, base, table } = image.get_or_insert_with(Image::new);
        let mut before = Vec::new();
        for _ in 0..16 {
            let (at, form, value) = (input.u32() as usize, input.u8(), input.u64());
            let at = table.start + at % (table.len() - 8);
            let len = 1 << (form % 4);
            before.push((at, bytes[at..at + len].to_vec()));
            bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
            if input.is_empty() {
                break;
            }
        }
        hold(bytes, *base);
        before.iter().rev().for_each(|(at, was)| bytes[*at..*at + was.len()].copy_from_slice(was));
    });
}

fn hold(image: &[u8], base: u64) {
    let Ok(found) = kallsyms::decode(image, base, None) else { return };
    assert!(found.place.start < found.place.end && found.place.end <= image.len() + 16, "{:?}", found.place);
    // A symbol has at least a length and a token.
    assert!(found.symbols.len() <= image.len() / 2);
    agrees(&found.symbols);
    assert!(found.symbols.iter().take(SOME).all(|s| s.name.len() <= MAX_NAME), "a name is too long");
}

/// Lookups in a table agree with each other.
pub fn agrees(table: &SymbolTable) {
    assert_eq!(table.is_empty(), table.iter().next().is_none());
    let step = (table.len() / SOME).max(1);
    let mut last = 0;
    for symbol in table.iter().step_by(step) {
        assert!(symbol.addr >= last, "not in order");
        last = symbol.addr;
        assert!(table.lookup(symbol.name).is_some_and(|at| at <= symbol.addr), "{symbol:?}");
        let here = table.resolve(symbol.addr).expect("it is a symbol's address");
        assert_eq!((here.offset, table.lookup(here.name).is_some()), (0, true), "{symbol:?}");
        let after = table.resolve(symbol.addr.saturating_add(1)).expect("it is behind a symbol");
        assert!(after.size == 0 || after.offset < after.size, "{after:?}");
    }
}
