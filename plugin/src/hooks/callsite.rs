//! Tells from the code before a return address which functions may return there.
//!
//! A call instruction ends its block, so the return address starts a block. The bytes before it
//! show what was called. A direct call of an allocator is certain. A direct call of another
//! function may also return from an allocator, if that function ends in a tail call. Such functions
//! are found once, in the kernel's text. After an indirect call any function may return.

use super::arch::{self, Call, LONGEST_CALL, call_before, jump_at};
use guest_symbols::Kernel;
use guest_symbols::memory::{StoppedMemory, VirtAddr};
use std::collections::HashMap;
use std::ops::Range;

/// Which functions may return to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Returns {
    /// An allocator, certainly or very likely.
    Allocator,
    /// Any function.
    Anything,
    /// A function that is not an allocator, and makes no tail call to one.
    Other,
    /// No call instruction ends here.
    NoCall,
}

/// How the tail calls of a function end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ends {
    Anywhere,
    InAllocator,
}

/// Functions of the kernel from which allocators may return.
pub struct CallSites {
    /// Functions that are allocators, or that end in a jump to one or to anywhere.
    targets: HashMap<u64, Ends>,
    text: Range<u64>,
}

impl CallSites {
    /// Reads the kernel's text. `allocators` are the virtual addresses of allocators.
    pub fn of_kernel(kernel: &Kernel, memory: &impl StoppedMemory, allocators: &[u64]) -> CallSites {
        let text = kernel.symbols.lookup("_stext").unwrap_or(0)..kernel.symbols.lookup("_etext").unwrap_or(0);
        let functions: Vec<u64> = kernel
            .symbols
            .iter()
            .filter(|s| matches!(s.kind, b't' | b'T' | b'W' | b'w') && text.contains(&s.addr))
            .map(|s| s.addr)
            .collect();
        let is_trampoline = |name: &str| arch::TRAMPOLINES.iter().any(|prefix| name.starts_with(prefix));
        let trampolines: Vec<u64> = kernel.symbols.iter().filter(|s| is_trampoline(s.name)).map(|s| s.addr).collect();
        let bytes = memory.run(kernel.image_phys(VirtAddr(text.start)), text.end.saturating_sub(text.start) as usize);
        CallSites::new(bytes, text, &functions, allocators, &trampolines)
    }

    /// Reads the kernel's `text`, which lies at the virtual addresses `range`. `functions` holds
    /// the starts of all functions, ascending. `allocators` and `trampolines` (indirect call thunks
    /// and static calls) are some of them.
    pub fn new(
        text: &[u8],
        range: Range<u64>,
        functions: &[u64],
        allocators: &[u64],
        trampolines: &[u64],
    ) -> CallSites {
        let mut targets: HashMap<u64, Ends> = trampolines.iter().map(|&t| (t, Ends::Anywhere)).collect();
        targets.extend(allocators.iter().map(|&a| (a, Ends::InAllocator)));
        let jumps = jumps_between_functions(text, range.start, functions);
        // Repeated for callers of callers, until nothing changes. This takes a few rounds.
        loop {
            let mut changed = false;
            for &(from, to) in &jumps {
                let Some(&ends) = targets.get(&to) else { continue };
                let known = targets.entry(from).or_insert_with(|| {
                    changed = true;
                    ends
                });
                if *known < ends {
                    *known = ends;
                    changed = true;
                }
            }
            if !changed {
                return CallSites { targets, text: range };
            }
        }
    }

    /// Which functions may return to virtual address `at`, given the [`LONGEST_CALL`] bytes before
    /// it.
    pub fn classify(&self, at: u64, before: &[u8; LONGEST_CALL]) -> Returns {
        let target = match call_before(at, before) {
            None => return Returns::NoCall,
            Some(Call::Indirect) => return Returns::Anything,
            Some(Call::Direct(target)) => target,
        };
        match self.targets.get(&target) {
            Some(Ends::InAllocator) => Returns::Allocator,
            Some(Ends::Anywhere) => Returns::Anything,
            None if self.text.contains(&target) => Returns::Other,
            // Modules, BPF programs, and trampolines of ftrace and static calls are not analysed.
            None => Returns::Anything,
        }
    }
}

/// Direct jumps from within one function to the start of another, as (source function, target).
/// Bytes that only look like jumps are included and do no harm.
fn jumps_between_functions(text: &[u8], base: u64, functions: &[u64]) -> Vec<(u64, u64)> {
    let mut starts = vec![0u64; text.len() / 64 + 1];
    for &f in functions {
        let offset = f.wrapping_sub(base) as usize;
        if offset < text.len() {
            starts[offset / 64] |= 1 << (offset % 64);
        }
    }
    let is_start = |offset: usize| offset < text.len() && starts[offset / 64] >> (offset % 64) & 1 != 0;
    let mut jumps = Vec::new();
    for at in 0..text.len().saturating_sub(6) {
        let Some(target) = jump_at(text, at) else { continue };
        if is_start(target) {
            let from = base + at as u64;
            let source = functions[..functions.partition_point(|&f| f <= from)].last().copied();
            jumps.extend(source.map(|s| (s, base + target as u64)).filter(|(s, t)| s != t));
        }
    }
    jumps
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xffff_ffff_8100_0000;

    /// Four functions of 16 bytes: an allocator, one that jumps to it, one that jumps to that, and
    /// a leaf.
    fn sites() -> CallSites {
        let mut text = vec![0x90; 70];
        let mut jump = |at: usize, to: usize| {
            text[at] = 0xe9;
            text[at + 1..at + 5].copy_from_slice(&(to as i32 - at as i32 - 5).to_le_bytes());
        };
        jump(0x18, 0x00);
        jump(0x24, 0x10);
        let functions: Vec<u64> = (0..4).map(|i| BASE + 16 * i).collect();
        CallSites::new(&text, BASE..BASE + 64, &functions, &[BASE], &[])
    }

    fn call(at: u64, target: u64) -> [u8; LONGEST_CALL] {
        let mut b = [0x90; LONGEST_CALL];
        b[2] = 0xe8;
        b[3..].copy_from_slice(&(target.wrapping_sub(at) as i32).to_le_bytes());
        b
    }

    #[test]
    fn tail_calls_are_followed() {
        let sites = sites();
        let at = BASE + 0x1000;
        for function in 0..3 {
            assert_eq!(sites.classify(at, &call(at, BASE + 16 * function)), Returns::Allocator);
        }
        assert_eq!(sites.classify(at, &call(at, BASE + 0x30)), Returns::Other);
        assert_eq!(sites.classify(at, &call(at, BASE - 0x1000)), Returns::Anything);
    }
}
