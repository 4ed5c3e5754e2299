//! Page tables, in a memory that consists of the input.

use crate::input::Input;
use guest_symbols::memory::OwnedMemory;
use guest_symbols::paging::PageTables;
use guest_symbols::{PhysAddr, VirtAddr};

/// Bytes of RAM, and most tables that are read.
const RAM: u64 = 0x1_0000;
const TABLES: usize = 256;

/// The first byte is the depth. Then follow the root, six addresses, and entries of 8 bytes with
/// their offsets.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let levels = if input.u8() & 1 == 0 { 4 } else { 5 };
    let tables = PageTables { root: PhysAddr(input.u64()), levels };
    let addresses: Vec<u64> = (0..6).map(|_| input.u64()).collect();
    let mut memory = OwnedMemory::zeroed(0, RAM as usize);
    while !input.is_empty() {
        let at = u64::from(input.u16()) / 8 * 8;
        memory.write(at, &input.u64().to_le_bytes());
    }
    for at in addresses {
        if let Ok(found) = tables.translate(&memory, VirtAddr(at)) {
            assert!((1..=1 << 30).contains(&found.len) && found.phys.0 < 1 << 52, "{found:?}");
            // The rest of the page lies behind it.
            let last = tables.translate(&memory, VirtAddr(at.wrapping_add(found.len - 1))).expect("the same page");
            assert_eq!((last.phys.0, last.len), (found.phys.0 + found.len - 1, 1));
        }
        if let Ok(found) = tables.translate_dirty(&memory, VirtAddr(at)) {
            assert_eq!(tables.translate(&memory, VirtAddr(at)).ok(), Some(found));
        }
    }
    let (mut calls, mut used) = (0, 0);
    let mut read = std::collections::HashSet::new();
    let is_new = |frame| read.len() < TABLES && read.insert(frame);
    tables.frames(&memory, |at| at.is_kernel(), is_new, &mut |at, frames| {
        calls += 1;
        used += usize::from(at.is_none());
        assert!(frames.start < frames.end && frames.end - frames.start <= 1 << 18 && frames.end <= 1 << 40);
        if let Some(at) = at {
            let found = tables.translate(&memory, at).expect("it is mapped");
            assert_eq!((found.phys.pfn(), found.len), (frames.start, (frames.end - frames.start) << 12), "{at:?}");
        }
    });
    assert!(calls <= 513 * TABLES && used <= TABLES, "{calls} runs of {used} tables");
}
