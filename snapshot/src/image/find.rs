//! Where the kernel is in an image.

use super::memory::ImageMemory;
use super::notes::{Notes, value};
use guest_symbols::Kernel;
use guest_symbols::kernel::{KernelError, START_KERNEL_MAP};
use guest_symbols::memory::{OwnedMemory, PAGE_SIZE, PhysAddr, VirtAddr};
use guest_symbols::paging::PageTables;

/// The size of the kernel's mapping there (KERNEL_IMAGE_SIZE with KASLR).
const SIZE: u64 = 1 << 30;
/// The alignment of the image (CONFIG_PHYSICAL_ALIGN).
const ALIGN: u64 = 2 << 20;
/// Bytes of memory around a place that are searched for the kernel: before and after it. The
/// kernels of distributions have 60 MiB.
const WINDOW: (u64, u64) = (64 << 20, 128 << 20);
/// Most places that are tried. All CPUs of a machine have one kernel.
const MAX_PLACES: usize = 4;
/// With page table isolation, this bit of CR3 tells a process's tables from the kernel's.
const USER_TABLES: u64 = 1 << 12;

/// Places in the kernel's image, the likeliest first.
fn places(memory: &ImageMemory, image: Option<(VirtAddr, PhysAddr)>, notes: &Notes) -> Vec<(VirtAddr, PhysAddr)> {
    let mut places: Vec<_> = image.into_iter().collect();
    let of_tables = notes
        .tables
        .iter()
        .flat_map(|&tables| [tables, PageTables { root: PhysAddr(tables.root.0 & !USER_TABLES), ..tables }]);
    places.extend(of_tables.filter_map(|tables| first_mapped(memory, tables)));
    places.extend(notes.vmcoreinfo.as_deref().and_then(by_vmcoreinfo));
    let mut seen = std::collections::HashSet::new();
    // Pages are mapped whole.
    places.retain(|(virt, phys)| virt.0 % PAGE_SIZE == phys.0 % PAGE_SIZE && seen.insert((virt.0, phys.0)));
    places
        .iter_mut()
        .for_each(|(virt, phys)| (virt.0, phys.0) = (virt.0 & !(PAGE_SIZE - 1), phys.0 & !(PAGE_SIZE - 1)));
    places.truncate(MAX_PLACES);
    places
}

/// The first address of the kernel's mapping that the tables map.
fn first_mapped(memory: &ImageMemory, tables: PageTables) -> Option<(VirtAddr, PhysAddr)> {
    let starts = (START_KERNEL_MAP..START_KERNEL_MAP + SIZE).step_by(ALIGN as usize).map(VirtAddr);
    starts.into_iter().find_map(|at| Some((at, tables.translate(memory, at).ok()?.phys)))
}

/// The address of `_stext`. It is a symbol since 2.6; `phys_base` is the image's distance from its
/// usual place, in decimal.
fn by_vmcoreinfo(text: &str) -> Option<(VirtAddr, PhysAddr)> {
    let stext = u64::from_str_radix(value(text, "SYMBOL(_stext)")?, 16).ok()?;
    let phys_base: i64 = value(text, "NUMBER(phys_base)")?.parse().ok()?;
    let phys = stext.checked_sub(START_KERNEL_MAP)?.checked_add_signed(phys_base)?;
    Some((VirtAddr(stext & !(PAGE_SIZE - 1)), PhysAddr(phys & !(PAGE_SIZE - 1))))
}

/// Finds the kernel. `None` if nothing shows where it is.
pub(crate) fn kernel(
    memory: &ImageMemory,
    image: Option<(VirtAddr, PhysAddr)>,
    notes: &Notes,
) -> Option<Result<Kernel, KernelError>> {
    let mut last = None;
    for (virt, phys) in places(memory, image, notes).into_iter().filter(|(virt, _)| virt.0 >= START_KERNEL_MAP) {
        let before = WINDOW.0.min(phys.0).min(virt.0 - START_KERNEL_MAP) & !(PAGE_SIZE - 1);
        let start = phys.0 - before;
        // The memory before the place may not be RAM.
        let start = if memory.end(start).is_some_and(|end| end > phys.0) { start } else { phys.0 };
        let Some(end) = memory.end(start) else { continue };
        let len = (phys.0 - start).saturating_add(WINDOW.1).min(end - start) as usize;
        let mut window = OwnedMemory::zeroed(start, len);
        if let Some(bytes) = window.slice_mut(PhysAddr(start), len) {
            memory.copy(start, bytes);
        }
        match Kernel::find(&window, virt, phys, None) {
            Ok(kernel) => return Some(Ok(kernel)),
            Err(why) => last = Some(Err(why)),
        }
    }
    last
}
