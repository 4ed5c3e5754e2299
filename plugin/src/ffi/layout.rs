//! Where guest RAM lies: guest physical addresses, and host addresses in this process. It changes
//! when memory is plugged or unplugged (pc-dimm, virtio-mem).

use super::optional;
use libc::{c_int, c_void};
use std::ops::Range;
use std::sync::OnceLock;

/// With at least this many bytes of RAM, machines have a hole below 4 GiB. This is q35's limit,
/// which is the lowest (hw/i386/pc_q35.c).
const LEAST_WITH_HOLE: u64 = 0xb000_0000;
const FOUR_GIB: u64 = 1 << 32;
/// Below 1 MiB, ROMs hide parts of RAM, so RAM is searched from here on.
const LOW: u64 = 1 << 20;
/// Highest address at which RAM is searched. A check has an entry for each page up to the end of
/// RAM.
const HIGHEST: u64 = 1 << 40;
/// RAM_ADDR_INVALID (include/exec/cpu-common.h).
const NO_RAM: u64 = u64::MAX;

/// Why guest RAM was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RamError {
    /// No mapping contains the instruction's bytes.
    #[error("the guest's code at host address {0:#x} lies in no mapping of QEMU's")]
    NotMapped(usize),
    /// There is more RAM than fits below the PCI hole, and QEMU exports no function that tells
    /// where the hole is.
    #[error(
        "this build of QEMU does not export address_space_map, so guests with {0:#x} bytes of RAM or more cannot be read; give the guest less than 2816 MiB (-m), or use a distribution's QEMU"
    )]
    Hole(u64),
}

/// A run of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub phys: u64,
    pub len: u64,
    pub host: usize,
}

impl Segment {
    #[inline]
    pub fn offset_of(&self, phys: u64) -> Option<u64> {
        Some(phys.wrapping_sub(self.phys)).filter(|offset| *offset < self.len)
    }

    #[inline]
    pub fn offset_of_host(&self, host: usize) -> Option<u64> {
        Some(host.wrapping_sub(self.host) as u64).filter(|offset| *offset < self.len)
    }
}

/// All RAM at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Ascending by physical address, disjoint.
    pub segments: Vec<Segment>,
    /// The same ranges of physical addresses, without host addresses.
    pub ranges: Vec<Range<u64>>,
}

impl Layout {
    fn of(mut segments: Vec<Segment>) -> Layout {
        segments.sort_unstable_by_key(|s| s.phys);
        let mut joined: Vec<Segment> = Vec::new();
        for s in segments {
            match joined.last_mut() {
                Some(last) if last.phys + last.len == s.phys && last.host + last.len as usize == s.host => {
                    last.len += s.len;
                }
                // Segments do not overlap. If they seem to, the second is dropped.
                Some(last) if last.phys + last.len > s.phys => {}
                _ => joined.push(s),
            }
        }
        let ranges = joined.iter().map(|s| s.phys..s.phys + s.len).collect();
        Layout { segments: joined, ranges }
    }

    /// Finds RAM, given the host address `code` of one of its bytes.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn find(code: usize) -> Result<Layout, RamError> {
        let has_code = |layout: &Layout| layout.segments.iter().any(|s| s.offset_of_host(code).is_some());
        let mapped = View::take().map(|view| view.layout());
        match mapped.filter(has_code).or_else(|| probe().filter(has_code)) {
            Some(layout) => Ok(layout),
            None => guess(code),
        }
    }

    /// The layout without the segments in a range of host addresses.
    pub fn without(&self, host: Range<usize>) -> Layout {
        let is_in = |s: &Segment| s.host < host.end && host.start < s.host + s.len as usize;
        Layout::of(self.segments.iter().filter(|s| !is_in(s)).copied().collect())
    }
}

/// QEMU's view of guest memory at one moment. While it is held, none of its RAM is unmapped.
pub(super) struct View(*mut c_void);

impl View {
    /// Takes the current view; `None` if QEMU does not export the functions.
    pub fn take() -> Option<View> {
        let get = optional::address_space_get_flatview()?;
        optional::flatview_unref()?;
        optional::flatview_for_each_range()?;
        let space = optional::address_space_memory()?;
        // SAFETY: the argument is the system address space. The thread is known to QEMU's RCU.
        let view = unsafe { get(space) };
        (!view.is_null()).then_some(View(view))
    }

    /// The layout of RAM in this view.
    pub fn layout(&self) -> Layout {
        struct Out {
            blocks: Vec<RamBlock>,
            found: Vec<Segment>,
        }
        extern "C" fn each(
            start: u64,
            start_high: u64,
            len: u64,
            len_high: u64,
            region: *mut c_void,
            offset: u64,
            out: *mut c_void,
        ) -> bool {
            // SAFETY: `out` is the `Out` below, alive and not otherwise used during the walk.
            let out = unsafe { &mut *out.cast::<Out>() };
            let end = start.saturating_add(len);
            if start_high == 0 && len_high == 0 && end > LOW && end <= HIGHEST {
                // ROMs hide parts of RAM below 1 MiB.
                let skipped = LOW.saturating_sub(start);
                if let Some(host) = ram_of(region) {
                    let host = host.wrapping_add((offset + skipped) as usize);
                    let segment = Segment { phys: start + skipped, len: len - skipped, host };
                    let is_in = |b: &RamBlock| host >= b.host && host + segment.len as usize <= b.host + b.len;
                    out.found.extend(Some(segment).filter(|_| out.blocks.iter().any(is_in)));
                }
            }
            false
        }
        let Some(for_each) = optional::flatview_for_each_range() else { return Layout::of(Vec::new()) };
        let mut out = Out { blocks: ram_blocks(), found: Vec::new() };
        // SAFETY: the view is held, so the regions that it passes are alive.
        unsafe { for_each(self.0, each, (&raw mut out).cast()) };
        from_low(out.found)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(unref) = optional::flatview_unref() {
            // SAFETY: this gives up the reference that was taken.
            unsafe { unref(self.0) };
        }
    }
}

/// The host address of a memory region's RAM. `None` unless the region belongs to a memory backend,
/// such as that of -m: devices have RAM too.
fn ram_of(region: *mut c_void) -> Option<usize> {
    let address = optional::memory_region_get_ram_addr()?;
    let owner_of = optional::memory_region_owner()?;
    let cast = optional::object_dynamic_cast()?;
    let pointer = optional::memory_region_get_ram_ptr()?;
    // SAFETY: the region belongs to a view that is held, so it is alive. Its address shows whether
    // it has RAM, before the pointer is requested.
    unsafe {
        if address(region) == NO_RAM {
            return None;
        }
        let owner = owner_of(region);
        if owner.is_null() || cast(owner, c"memory-backend".as_ptr()).is_null() {
            return None;
        }
        let host = pointer(region) as usize;
        (host != 0).then_some(host)
    }
}

/// Adds the first MiB: it belongs to the block that continues at 1 MiB.
fn from_low(mut segments: Vec<Segment>) -> Layout {
    match segments.iter_mut().find(|s| s.phys == LOW) {
        Some(first) => {
            first.phys = 0;
            first.host -= LOW as usize;
            first.len += LOW;
            Layout::of(segments)
        }
        None => Layout::of(Vec::new()),
    }
}

/// Maps addresses one after the other: up to the hole, and from 4 GiB on.
fn probe() -> Option<Layout> {
    let blocks = ram_blocks();
    let mut segments: Vec<Segment> = Vec::new();
    let mut phys = LOW;
    while phys < HIGHEST {
        let in_block = |h: usize| blocks.iter().any(|b| (b.host..b.host + b.len).contains(&h));
        match map_physical(phys).filter(|segment| in_block(segment.host)) {
            Some(segment) => {
                phys += segment.len;
                segments.push(segment);
            }
            None if phys < FOUR_GIB => phys = FOUR_GIB,
            None => break,
        }
    }
    Some(from_low(segments)).filter(|layout| !layout.segments.is_empty())
}

/// Without QEMU's functions, the mapping that contains the code is taken for RAM from address 0 on.
fn guess(code: usize) -> Result<Layout, RamError> {
    let mapping = mapping_of(code).ok_or(RamError::NotMapped(code))?;
    let len = mapping.len() as u64;
    if len >= LEAST_WITH_HOLE {
        return Err(RamError::Hole(LEAST_WITH_HOLE));
    }
    Ok(Layout::of(vec![Segment { phys: 0, len, host: mapping.start }]))
}

/// One of QEMU's RAM blocks.
#[derive(Debug, Clone)]
struct RamBlock {
    /// Host address.
    host: usize,
    /// Bytes.
    len: usize,
}

/// All RAM blocks, including video memory and option ROMs; empty if QEMU does not export the
/// functions.
fn ram_blocks() -> Vec<RamBlock> {
    struct Out {
        blocks: Vec<RamBlock>,
        host: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
        len: unsafe extern "C" fn(*mut c_void) -> u64,
    }
    extern "C" fn each(block: *mut c_void, opaque: *mut c_void) -> c_int {
        // SAFETY: `opaque` is the `Out` below, alive and not otherwise used during the walk;
        // `block` is a RAMBlock that QEMU keeps alive for the call.
        super::guard(|| unsafe {
            let out = &mut *opaque.cast::<Out>();
            out.blocks.push(RamBlock { host: (out.host)(block) as usize, len: (out.len)(block) as usize });
        });
        0
    }
    let (Some(foreach), Some(host), Some(len)) =
        (optional::qemu_ram_foreach_block(), optional::qemu_ram_get_host_addr(), optional::qemu_ram_get_used_length())
    else {
        return Vec::new();
    };
    let mut out = Out { blocks: Vec::new(), host, len };
    // SAFETY: `each` gets the `Out`, which outlives the walk.
    unsafe { foreach(each, (&raw mut out).cast()) };
    out.blocks
}

/// Makes QEMU call `f` before it frees a RAM block, with the block's host address and length in
/// bytes. Call it only while QEMU starts, on the main thread. If QEMU does not export the function,
/// `f` is never called.
pub(super) fn on_ram_removed(f: fn(usize, usize)) {
    /// QEMU's notifier carries no data that could hold it.
    static FUNCTION: OnceLock<fn(usize, usize)> = OnceLock::new();
    extern "C" fn removed(_notifier: *mut c_void, host: *mut c_void, size: usize, most: usize) {
        super::guard(|| {
            if let Some(f) = FUNCTION.get() {
                f(host as usize, size.max(most));
            }
        });
    }
    let Some(add) = optional::ram_block_notifier_add() else { return };
    if FUNCTION.set(f).is_err() {
        return;
    }
    // `struct RAMBlockNotifier` (include/exec/ramlist.h, QEMU 9.2 to 11.1) has optional functions
    // for blocks that are added, removed and resized, and the links of a list. There is room for
    // more functions.
    let notifier: Box<[usize; 16]> =
        Box::new(std::array::from_fn(|i| if i == 1 { removed as *const () as usize } else { 0 }));
    // SAFETY: the list is the main thread's; the notifier is never freed. `removed` has the
    // signature of `ram_block_removed`.
    unsafe { add(Box::into_raw(notifier).cast()) };
}

/// The run of RAM that starts at guest physical address `phys`. `None` if it is not RAM, or if QEMU
/// does not export the functions. Call it only on a vCPU's thread, which QEMU's RCU knows.
fn map_physical(phys: u64) -> Option<Segment> {
    let map = optional::address_space_map()?;
    let unmap = optional::address_space_unmap()?;
    let space = optional::address_space_memory()?;
    let mut len = 1 << 40;
    // SAFETY: the argument is the system address space. The mapping is undone at once; RAM stays
    // where it is.
    let host = unsafe {
        let host = map(space, phys, &mut len, false, 0);
        if !host.is_null() {
            unmap(space, host, len, false, 0);
        }
        host
    };
    (!host.is_null() && len > 0).then_some(Segment { phys, len, host: host as usize })
}

/// Writes to RAM at guest physical address `phys`, as a device does. Returns whether QEMU has
/// written all bytes. Call it on a thread that QEMU's RCU knows, for RAM only.
pub(super) fn write_physical(phys: u64, bytes: &[u8]) -> bool {
    let (Some(map), Some(unmap), Some(space)) =
        (optional::address_space_map(), optional::address_space_unmap(), optional::address_space_memory())
    else {
        return false;
    };
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        let mut len = rest.len() as u64;
        // SAFETY: the argument is the system address space. QEMU has mapped `len` bytes at `host`
        // for this access, which ends with unmap(). That marks the bytes as changed.
        unsafe {
            let host = map(space, phys + done as u64, &mut len, true, 0);
            let len = len.min(rest.len() as u64);
            if host.is_null() || len == 0 {
                return false;
            }
            std::ptr::copy_nonoverlapping(rest.as_ptr(), host.cast::<u8>(), len as usize);
            unmap(space, host, len, true, len);
            done += len as usize;
        }
    }
    true
}

/// The mapping of this process that contains host address `host`.
fn mapping_of(host: usize) -> Option<Range<usize>> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        range.contains(&host).then_some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_and_taken_away() {
        let segment = |phys, len, host| Segment { phys, len, host };
        let all = Layout::of(vec![
            segment(0x8000, 0x1000, 0x50_0000),
            segment(0, 0x1000, 0x10_0000),
            segment(0x1000, 0x1000, 0x10_1000),
            segment(0x1800, 0x1000, 0x70_0000),
        ]);
        assert_eq!(all.segments, [segment(0, 0x2000, 0x10_0000), segment(0x8000, 0x1000, 0x50_0000)]);
        assert_eq!(all.ranges, [0..0x2000, 0x8000..0x9000]);
        assert_eq!(all.without(0x50_0800..0x50_0900).segments, [segment(0, 0x2000, 0x10_0000)]);
        assert_eq!(all.without(0x50_1000..0x60_0000), all);
        let low = from_low(vec![segment(LOW, 0x1000, 0x10_0000 + LOW as usize)]);
        assert_eq!(low.segments, [segment(0, LOW + 0x1000, 0x10_0000)]);
    }
}
