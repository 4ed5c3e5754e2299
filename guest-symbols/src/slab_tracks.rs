//! Records of who allocated a slab object, which SLUB keeps behind each object of some caches
//! (SLAB_STORE_USER, `struct track` in mm/slub.c, 5.10 to 7.3). `slub_debug=U` on the kernel's
//! command line asks for them.

use crate::Kernel;
use crate::memory::{GuestMemory, VirtAddr, u32_at, u64_at};
use crate::slab;
use crate::stack_depot::StackDepot;
use std::collections::HashMap;

/// SLAB_STORE_USER up to 6.8. Later the bit depends on the configuration.
const STORE_USER: u64 = 0x1_0000;
/// Size of a pointer behind an object.
const POINTER: u64 = 8;
/// The most bytes of a record, and the most frames in one.
const MAX_TRACK: u64 = 1 << 10;
const MAX_FRAMES: u64 = 64;

/// The record of an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Track {
    /// The return address into the function that called the allocator.
    pub caller: u64,
    /// The stack's handle in the depot, or the record's address if it has the frames itself.
    pub stack: u64,
    /// The pid of the thread.
    pub pid: u32,
    /// The CPU.
    pub cpu: u32,
    /// Jiffies.
    pub jiffies: u64,
}

/// Offsets in bytes in `struct track`.
struct Layout {
    size: u64,
    caller: usize,
    cpu: usize,
    pid: usize,
    when: usize,
    /// The handle of the stack, from 5.18 on.
    handle: Option<usize>,
    /// The frames and their number, before.
    frames: Option<(u64, u64)>,
}

impl Layout {
    fn of(kernel: &Kernel) -> Option<Layout> {
        let btf = kernel.btf.as_ref()?;
        let at = |name| btf.offset_of("track", name).map(|at| at as usize);
        let frames = btf.member("track", "addrs");
        Some(Layout {
            size: btf.size_of("track").filter(|size| *size <= MAX_TRACK)?,
            caller: at("addr")?,
            cpu: at("cpu")?,
            pid: at("pid")?,
            when: at("when")?,
            handle: at("handle"),
            frames: frames.and_then(|m| Some((m.offset(), btf.array_len(m.type_id)?.min(MAX_FRAMES)))),
        })
    }
}

/// The caches that keep records.
pub struct Tracks {
    layout: Layout,
    depot: Option<StackDepot>,
    /// Bytes from an object to its record, by the address of its `struct kmem_cache`.
    caches: HashMap<VirtAddr, u64>,
}

impl Tracks {
    /// Finds the caches that keep records. `None` if there are none, or the kernel's types do not
    /// describe them.
    pub fn of(kernel: &Kernel, memory: &impl GuestMemory) -> Option<Tracks> {
        let btf = kernel.btf.as_ref()?;
        let bit = btf.enumerator("_slab_flag_bits", "_SLAB_STORE_USER");
        let flag = bit.map_or(STORE_USER, |bit| 1u64.checked_shl(bit as u32).unwrap_or(0));
        let [flags, offset, inuse] = ["flags", "offset", "inuse"].map(|name| kernel.offset_of("kmem_cache", name));
        let mut caches = HashMap::new();
        for cache in slab::caches(kernel, memory).unwrap_or_default() {
            let word = |at: Option<u64>| kernel.read_u32(memory, cache.offset(at?)).ok().map(u64::from);
            let (Some(flags), Some(offset), Some(inuse)) = (word(flags), word(offset), word(inuse)) else { continue };
            if flags & flag != 0 {
                // get_info_end()
                caches.insert(cache, if offset >= inuse { inuse + POINTER } else { inuse });
            }
        }
        let layout = Layout::of(kernel).filter(|_| !caches.is_empty())?;
        Some(Tracks { layout, depot: StackDepot::of(kernel, memory), caches })
    }

    /// Whether a cache keeps records.
    pub fn has(&self, cache: VirtAddr) -> bool {
        self.caches.contains_key(&cache)
    }

    /// The record of an object. `None` if its cache keeps none, or it was allocated before.
    pub fn read(&self, kernel: &Kernel, memory: &impl GuestMemory, cache: VirtAddr, object: u64) -> Option<Track> {
        let at = VirtAddr(object).offset(*self.caches.get(&cache)?);
        let mut bytes = [0; MAX_TRACK as usize];
        let bytes = &mut bytes[..self.layout.size as usize];
        kernel.read(memory, at, bytes).ok()?;
        let word = |at| u64_at(bytes, at).unwrap_or(0);
        let half = |at| u32_at(bytes, at).unwrap_or(0);
        let caller = word(self.layout.caller);
        Some(Track {
            caller,
            stack: self.layout.handle.map_or(at.0, |at| half(at).into()),
            pid: half(self.layout.pid),
            cpu: half(self.layout.cpu),
            jiffies: word(self.layout.when),
        })
        .filter(|_| VirtAddr(caller).is_kernel())
    }

    /// The frames of a record, innermost first. They may start inside of the allocator. `None` if
    /// there are none.
    pub fn frames(&self, kernel: &Kernel, memory: &impl GuestMemory, track: &Track) -> Option<Vec<u64>> {
        let frames = match (&self.depot, self.layout.handle, self.layout.frames) {
            (Some(depot), Some(_), _) => depot.frames(kernel, memory, track.stack as u32)?,
            (_, None, Some((at, count))) => {
                let mut bytes = vec![0; 8 * count as usize];
                kernel.read(memory, VirtAddr(track.stack).offset(at), &mut bytes).ok()?;
                bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
            }
            _ => return None,
        };
        Some(frames.into_iter().take_while(|frame| VirtAddr(*frame).is_kernel()).collect())
    }
}
