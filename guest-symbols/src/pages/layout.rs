//! How `struct page` shows the use of its frame (include/linux/mm_types.h, page-flags.h).

use crate::Kernel;
use crate::memory::{u32_at, u64_at};

/// PAGE_MAPPING_ANON, and both flag bits of `page->mapping`.
const MAPPING_ANON: u64 = 1;
pub(super) const MAPPING_FLAGS: u64 = 3;

/// The use of a page frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Use {
    /// No RAM, or no `struct page`.
    #[default]
    Absent,
    /// Free: in the buddy allocator, on a per-CPU list, or offline.
    Free,
    /// The descriptor shows no use. The page is free on a CPU's list, or a later page of a block
    /// that is no compound page. Only used while descriptors are read.
    Idle,
    /// A slab.
    Slab,
    /// KFENCE's pool, including guard pages.
    Kfence,
    /// In the page cache or another address space.
    Cache,
    /// Anonymous user memory.
    Anonymous,
    /// A page table.
    Table,
    /// PG_reserved: the kernel image and memblock allocations.
    Reserved,
    /// Allocated by hibernation while there is an image: copies of other pages.
    Image,
    /// Allocated from the page allocator for the kernel's own use.
    Kernel,
    /// A hugetlb page (mm/hugetlb.c), either free in its pool or user memory.
    Huge,
    /// Part of a zspage (mm/zsmalloc.c): compressed data.
    Zspage,
}

/// How this kernel's `struct page` shows its use. Offsets are in bytes, flags are masks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) size: u64,
    pub(super) flags: usize,
    compound: usize,
    pub(super) mapping: usize,
    page_type: usize,
    refcount: usize,
    /// The order of a free block, in its first page.
    pub(super) private: usize,
    reserved: u64,
    slab: SlabTest,
    types: Types,
    pub(super) slab_cache: u64,
    /// Offset of `index`. It is a number, and keeps its old value when a page is allocated again.
    pub(super) index: Option<usize>,
    head: u64,
    /// PG_private.
    pub(super) has_private: u64,
    hugetlb: Option<HugetlbTest>,
}

/// Slabs have a page flag (up to 6.10) or a page type.
#[derive(Debug, Clone, Copy)]
enum SlabTest {
    Flag(u64),
    Type(u8),
}

/// How `page_type` is read: cleared bits of an inverted word (up to 6.10), or a number in the top
/// byte.
#[derive(Debug, Clone, Copy)]
enum Types {
    ClearedBits { buddy: u32, offline: u32, table: u32, hugetlb: Option<u32>, zsmalloc: Option<u32> },
    TopByte { buddy: u8, offline: u8, table: u8, large: Option<u8>, hugetlb: Option<u8>, zsmalloc: Option<u8> },
}

/// If hugetlb pages have no page type, the second page of each shows it.
#[derive(Debug, Clone, Copy)]
enum HugetlbTest {
    /// The byte at this offset is the number of the destructor (up to 6.5).
    Destructor(usize, u8),
    /// A page flag (6.6 to 6.8).
    Flag(u64),
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
                hugetlb: kind("PGTY_hugetlb").map(|t| t as u8),
                zsmalloc: kind("PGTY_zsmalloc").map(|t| t as u8),
            },
            None => Types::ClearedBits {
                // They are macros before 6.10 and not in BTF (include/linux/page-flags.h, 5.0 to
                // 6.9).
                buddy: kind("PG_buddy").unwrap_or(0x80) as u32,
                offline: kind("PG_offline").unwrap_or(0x100) as u32,
                table: kind("PG_table").unwrap_or(0x200) as u32,
                hugetlb: kind("PG_hugetlb").map(|bits| bits as u32),
                zsmalloc: kind("PG_zsmalloc").map(|bits| bits as u32),
            },
        };
        let slab = match (kind("PGTY_slab"), flag("PG_slab")) {
            (Some(t), _) => SlabTest::Type(t as u8),
            (None, Some(f)) => SlabTest::Flag(f),
            (None, None) => return None,
        };
        let destructor = || {
            let number = btf.enumerator("compound_dtor_id", "HUGETLB_PAGE_DTOR")? as u8;
            // In `struct folio` the offset counts from the start of the first page (6.3 to 6.5).
            let in_folio = || Some((btf.offset_of("folio", "_folio_dtor")? % btf.size_of("page")?.max(1)) as usize);
            Some(HugetlbTest::Destructor(page("compound_dtor").or_else(in_folio)?, number))
        };
        let hugetlb = flag("PG_hugetlb").map(HugetlbTest::Flag).or_else(destructor);
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
            head: flag("PG_head").unwrap_or(0),
            has_private: flag("PG_private").unwrap_or(0),
            hugetlb,
            index: page("index").or_else(|| page("__folio_index")),
            slab_cache: btf.offset_of("slab", "slab_cache").or_else(|| btf.offset_of("page", "slab_cache"))?,
        })
    }

    /// Whether a page is the first of a free block of the buddy allocator.
    pub(super) fn is_buddy(&self, page: &[u8]) -> bool {
        let page_type = u32_at(page, self.page_type).unwrap_or(0);
        match self.types {
            Types::ClearedBits { buddy, .. } => page_type >= 0xf000_0000 && page_type & buddy == 0,
            Types::TopByte { buddy, .. } => (page_type >> 24) as u8 == buddy,
        }
    }

    /// Whether a page is the first of a large kmalloc.
    pub(super) fn is_large(&self, page: &[u8]) -> bool {
        let page_type = u32_at(page, self.page_type).unwrap_or(0);
        matches!(self.types, Types::TopByte { large: Some(large), .. } if (page_type >> 24) as u8 == large)
    }

    /// Whether pages of zspages have a page type (6.11 on).
    pub(super) fn tells_zspages(&self) -> bool {
        match self.types {
            Types::ClearedBits { zsmalloc, .. } => zsmalloc.is_some(),
            Types::TopByte { zsmalloc, .. } => zsmalloc.is_some(),
        }
    }

    /// Whether the second page of a compound page shows that it is a hugetlb page. `second` is its
    /// descriptor.
    fn is_hugetlb(&self, second: &[u8]) -> bool {
        match self.hugetlb {
            Some(HugetlbTest::Destructor(at, number)) => second.get(at) == Some(&number),
            Some(HugetlbTest::Flag(flag)) => u64_at(second, self.flags).is_some_and(|flags| flags & flag != 0),
            None => false,
        }
    }

    /// The use of the page with descriptor `page`. `None` for a tail page, whose use is that of its
    /// head. `second` is the next page's descriptor, or empty.
    #[inline]
    pub(super) fn classify(&self, page: &[u8], second: &[u8]) -> Option<Use> {
        let word = |at| u64_at(page, at).unwrap_or(0);
        if word(self.compound) & 1 != 0 {
            return None;
        }
        let flags = word(self.flags);
        let page_type = u32_at(page, self.page_type).unwrap_or(0);
        let refcount = u32_at(page, self.refcount).unwrap_or(0);
        let mapping = word(self.mapping);
        let (buddy, offline, table, large, hugetlb, zspage) = match self.types {
            Types::ClearedBits { buddy, offline, table, hugetlb, zsmalloc } => {
                let is = |bit| page_type >= 0xf000_0000 && page_type & bit == 0;
                (is(buddy), is(offline), is(table), false, hugetlb.is_some_and(is), zsmalloc.is_some_and(is))
            }
            Types::TopByte { buddy, offline, table, large, hugetlb, zsmalloc } => {
                let top = (page_type >> 24) as u8;
                let is = |of: Option<u8>| of == Some(top);
                (top == buddy, top == offline, top == table, is(large), is(hugetlb), is(zsmalloc))
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
            () if hugetlb || (flags & self.head != 0 && self.is_hugetlb(second)) => Use::Huge,
            () if zspage => Use::Zspage,
            () if flags & self.reserved != 0 => Use::Reserved,
            () if refcount == 0 => Use::Idle,
            () if mapping & MAPPING_ANON != 0 => Use::Anonymous,
            () if mapping != 0 && mapping & MAPPING_FLAGS == 0 => Use::Cache,
            () => Use::Kernel,
        })
    }
}
