//! How a kernel's `struct page` tells what its frame is used for (include/linux/mm_types.h, page-flags.h).

use crate::Kernel;
use crate::memory::{u32_at, u64_at};

/// PAGE_MAPPING_ANON, and both flag bits of `page->mapping`.
const MAPPING_ANON: u64 = 1;
pub(super) const MAPPING_FLAGS: u64 = 3;

/// What a page frame is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Use {
    /// No RAM, or no `struct page`.
    #[default]
    Absent,
    /// Nobody's: in the buddy allocator, on a per-CPU list, or offline.
    Free,
    /// Of no use that it tells: free on a CPU's list, or a further page of a block that is no compound page. Only while
    /// the descriptors are read.
    Idle,
    /// A slab.
    Slab,
    /// In the page cache, or another address space.
    Cache,
    /// Anonymous user memory.
    Anonymous,
    /// A page table.
    Table,
    /// PG_reserved: the kernel image and memblock allocations.
    Reserved,
    /// Hibernation's own, while there is an image: copies of other pages.
    Image,
    /// Allocated from the page allocator for the kernel's own use.
    Kernel,
}

/// How this kernel's `struct page` tells its use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) size: u64,
    flags: usize,
    compound: usize,
    pub(super) mapping: usize,
    page_type: usize,
    refcount: usize,
    /// In a free block's first page its order.
    pub(super) private: usize,
    reserved: u64,
    slab: SlabTest,
    types: Types,
    pub(super) slab_cache: u64,
    /// Of `index`, which is a number and is left as it was when a page is given out again.
    pub(super) index: Option<usize>,
}

/// A slab is told by a page flag (to 6.10) or by the page type.
#[derive(Debug, Clone, Copy)]
enum SlabTest {
    Flag(u64),
    Type(u8),
}

/// How `page_type` is read: bits cleared in an inverted word (to 6.10), or a number in the top byte.
#[derive(Debug, Clone, Copy)]
enum Types {
    ClearedBits { buddy: u32, offline: u32, table: u32 },
    TopByte { buddy: u8, offline: u8, table: u8, large: Option<u8> },
}

impl Layout {
    pub(super) fn of(kernel: &Kernel) -> Option<Layout> {
        let btf = kernel.btf.as_ref()?;
        let page = |path| btf.offset_of("page", path).map(|o| o as usize);
        let flag = |name| btf.enumerator("pageflags", name).map(|bit| 1 << bit);
        let kind = |name| btf.enumerator("pagetype", name);
        let types = match kind("PGTY_buddy") {
            Some(buddy) => Types::TopByte {
                buddy: buddy as u8,
                offline: kind("PGTY_offline")? as u8,
                table: kind("PGTY_table")? as u8,
                large: kind("PGTY_large_kmalloc").map(|t| t as u8),
            },
            None => Types::ClearedBits {
                // Macros before 6.10, so not in BTF: include/linux/page-flags.h of 5.0 to 6.9.
                buddy: kind("PG_buddy").unwrap_or(0x80) as u32,
                offline: kind("PG_offline").unwrap_or(0x100) as u32,
                table: kind("PG_table").unwrap_or(0x200) as u32,
            },
        };
        let slab = match (kind("PGTY_slab"), flag("PG_slab")) {
            (Some(t), _) => SlabTest::Type(t as u8),
            (None, Some(f)) => SlabTest::Flag(f),
            (None, None) => return None,
        };
        Some(Layout {
            size: btf.size_of("page")?,
            flags: page("flags")?,
            compound: page("compound_head").or_else(|| page("compound_info"))?,
            mapping: page("mapping")?,
            page_type: page("page_type")?,
            refcount: page("_refcount")?,
            private: page("private")?,
            reserved: flag("PG_reserved")?,
            slab,
            types,
            index: page("index").or_else(|| page("__folio_index")),
            slab_cache: btf.offset_of("slab", "slab_cache").or_else(|| btf.offset_of("page", "slab_cache"))?,
        })
    }

    /// Whether a page begins a free block of the buddy allocator.
    pub(super) fn is_buddy(&self, page: &[u8]) -> bool {
        let page_type = u32_at(page, self.page_type).unwrap_or(0);
        match self.types {
            Types::ClearedBits { buddy, .. } => page_type >= 0xf000_0000 && page_type & buddy == 0,
            Types::TopByte { buddy, .. } => (page_type >> 24) as u8 == buddy,
        }
    }

    /// The use of the page with descriptor `page`; `None` for a compound page's tail, which is used as its head.
    #[inline]
    pub(super) fn classify(&self, page: &[u8]) -> Option<Use> {
        let word = |at| u64_at(page, at).unwrap_or(0);
        if word(self.compound) & 1 != 0 {
            return None;
        }
        let flags = word(self.flags);
        let page_type = u32_at(page, self.page_type).unwrap_or(0);
        let refcount = u32_at(page, self.refcount).unwrap_or(0);
        let mapping = word(self.mapping);
        let (buddy, offline, table, large) = match self.types {
            Types::ClearedBits { buddy, offline, table } => {
                let is = |bit| page_type >= 0xf000_0000 && page_type & bit == 0;
                (is(buddy), is(offline), is(table), false)
            }
            Types::TopByte { buddy, offline, table, large } => {
                let top = (page_type >> 24) as u8;
                (top == buddy, top == offline, top == table, large == Some(top))
            }
        };
        let slab = match self.slab {
            SlabTest::Flag(f) => flags & f != 0 && !buddy,
            SlabTest::Type(t) => (page_type >> 24) as u8 == t,
        };
        Some(match () {
            () if slab => Use::Slab,
            () if buddy || offline => Use::Free,
            () if table => Use::Table,
            () if large => Use::Kernel,
            () if flags & self.reserved != 0 => Use::Reserved,
            () if refcount == 0 => Use::Idle,
            () if mapping & MAPPING_ANON != 0 => Use::Anonymous,
            () if mapping != 0 && mapping & MAPPING_FLAGS == 0 => Use::Cache,
            () => Use::Kernel,
        })
    }
}
