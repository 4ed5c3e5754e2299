//! The kernel's records of modules and generated code.

use crate::guest::{self, Budget, Guest};
use crate::input::Input;
use guest_symbols::memory::{GuestMemory, PhysAddr};
use guest_symbols::modules::Module;
use std::cell::RefCell;

/// Bytes at the end of RAM that the input overwrites.
pub const ROOM: u64 = 64 << 10;
/// As for other structures.
const READS: u64 = 5_000_000;
const BYTES: u64 = 256 << 20;

thread_local! { static GUEST: RefCell<Option<Guest>> = const { RefCell::new(None) } }

/// The guest. Only the end of its RAM is overwritten.
pub fn with(act: impl FnOnce(&mut Guest)) {
    let make = || {
        Guest::new(|_, memory| {
            let _ = memory.read_u64(PhysAddr(memory.ranges()[0].start));
        })
    };
    guest::with(&GUEST, make, act);
}

/// The physical address of the input.
pub fn place(guest: &Guest) -> u64 {
    guest.memory().ranges().last().expect("RAM").end - ROOM
}

/// The struct and everything that it points to, as in memory.
pub fn check(data: &[u8]) {
    with(|guest| {
        let at = place(guest);
        let data = Input(data).bytes(ROOM as usize).to_vec();
        guest.with(&[(at, data)], |guest| hold(guest, at));
    });
}

fn hold(guest: &Guest, at: u64) {
    let (kernel, at) = (guest.kernel(), guest.direct(at));
    let modules = [
        Module::read(kernel, &Budget::new(guest.memory(), READS, BYTES), at),
        Module::read_bpf(kernel, &Budget::new(guest.memory(), READS, BYTES), at),
    ];
    for module in modules.into_iter().flatten() {
        assert!(module.name.len() <= 56 * 3 && module.ranges.len() <= 17, "{} ranges", module.ranges.len());
        assert!(module.ranges.iter().all(|r| r.start < r.end));
        assert!(module.symbols().count() <= 1 << 20 && module.symbol_count() <= 1 << 20);
        for symbol in module.symbols().take(500) {
            assert!(symbol.name.len() <= 512 * 3, "a name of {} bytes", symbol.name.len());
            assert!(module.ranges.iter().any(|r| r.contains(&symbol.addr)), "a symbol outside of its module");
            let found = module.resolve(symbol.addr).expect("a symbol");
            assert!(found.offset == 0 && found.size > 0, "{found:?}");
        }
        assert!(module.resolve(0).is_none() || module.ranges.iter().any(|r| r.contains(&0)));
    }
}
