//! The kernel's stack depot (lib/stackdepot.c, 5.18 to 7.3): each stack once, under a handle.

use crate::Kernel;
use crate::memory::{GuestMemory, VirtAddr};

/// The low bits of a record's address that are zero (STACK_ALLOC_ALIGN, DEPOT_STACK_ALIGN).
const ALIGN: u32 = 4;
/// The most frames of a stack (CONFIG_STACKDEPOT_MAX_FRAMES).
const MAX_FRAMES: u64 = 64;
/// The array of pools, or a pointer to it. It is named `stack_slabs` up to 6.2.
const POOLS: [&str; 2] = ["stack_pools", "stack_slabs"];
/// The number of the pool in a handle, and what is to be subtracted from it. It is named after the
/// slabs up to 6.2. From 6.9 on it is counted from 1.
const INDEX: [(&str, u64); 3] = [("pool_index_plus_1", 1), ("pool_index", 0), ("slabindex", 0)];

/// A bit field of a handle: shift and mask.
#[derive(Debug, Clone, Copy)]
struct Field(u32, u64);

impl Field {
    fn of(kernel: &Kernel, name: &str) -> Option<Field> {
        let member = kernel.btf.as_ref()?.member("handle_parts", name)?;
        let bits = member.bits.filter(|bits| u64::from(*bits) + member.bit_offset <= 32)?;
        Some(Field(member.bit_offset as u32, (1 << bits) - 1))
    }

    fn get(self, handle: u32) -> u64 {
        u64::from(handle) >> self.0 & self.1
    }
}

/// Where the stacks are.
#[derive(Debug)]
pub struct StackDepot {
    /// Virtual address of the array of pools' addresses, and their number if it is known.
    pools: VirtAddr,
    count: u64,
    index: (Field, u64),
    offset: Field,
    /// Bits of a handle that are not part of the stack's identity.
    extra: u32,
    /// Offsets in `struct stack_record`.
    size: u64,
    handle: u64,
    entries: u64,
}

impl StackDepot {
    /// Finds the depot. `None` if the kernel has none, or its types do not describe it.
    pub fn of(kernel: &Kernel, memory: &impl GuestMemory) -> Option<StackDepot> {
        let symbol = POOLS.iter().find_map(|name| kernel.symbol(name))?;
        let size = kernel.symbols.resolve(symbol.0)?.size;
        // It is a pointer to the array from 6.13 on.
        let (pools, count) = match size {
            ..=8 => (VirtAddr(kernel.read_u64(memory, symbol).ok()?), u64::MAX),
            size => (symbol, size / 8),
        };
        let index = INDEX.iter().find_map(|(name, less)| Some((Field::of(kernel, name)?, *less)))?;
        let extra = Field::of(kernel, "extra").map_or(0, |Field(shift, mask)| (mask << shift) as u32);
        let record = |name| kernel.offset_of("stack_record", name);
        Some(StackDepot {
            pools,
            count,
            index,
            offset: Field::of(kernel, "offset")?,
            extra,
            size: record("size")?,
            handle: record("handle")?,
            entries: record("entries")?,
        })
    }

    /// The frames of a stack, innermost first. `None` if the handle leads to no record of it.
    pub fn frames(&self, kernel: &Kernel, memory: &impl GuestMemory, handle: u32) -> Option<Vec<u64>> {
        let (index, less) = self.index;
        let pool = index.get(handle).checked_sub(less).filter(|pool| *pool < self.count)?;
        let pool = kernel.read_u64(memory, self.pools.offset(8 * pool)).ok().filter(|&at| at != 0)?;
        let record = VirtAddr(pool).offset(self.offset.get(handle) << ALIGN);
        let stored = kernel.read_u32(memory, record.offset(self.handle)).ok()?;
        if (stored ^ handle) & !self.extra != 0 {
            return None;
        }
        let size = u64::from(kernel.read_u32(memory, record.offset(self.size)).ok()?);
        let mut bytes = vec![0; 8 * size.min(MAX_FRAMES) as usize];
        kernel.read(memory, record.offset(self.entries), &mut bytes).ok()?;
        Some(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }
}
