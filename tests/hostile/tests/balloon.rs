//! A page in a balloon, in a guest without one. Its descriptor is written as
//! `balloon_page_insert()` does (include/linux/balloon_compaction.h, 5.10 to 7.3).

use guest_symbols::memory::PAGE_SIZE;
use guest_symbols::pages::{Maps, Pages, Use};
use hostile::guest::Guest;

/// Most frames in one block of the page allocator: 2 to the power of `MAX_PAGE_ORDER`.
const MOST: usize = 1 << 10;

#[test]
fn only_the_page_itself_is_free() {
    let mut guest = Guest::new(|snapshot, memory| {
        Pages::read(snapshot.moment().kernel, memory).expect("page descriptors");
    });
    let before = Pages::read(guest.kernel(), guest.memory()).expect("page descriptors").uses().to_vec();
    // A kernel page that is followed by slab pages.
    let is_it = |frames: &[Use]| frames[0] == Use::Kernel && frames[1..].contains(&Use::Slab);
    let pfn = before.windows(MOST).position(is_it).expect("a kernel page before slabs");

    let btf = guest.kernel().btf.as_ref().expect("types");
    let offset = |name| btf.offset_of("page", name).expect("a member of struct page");
    let page_type: u32 = match btf.enumerator("pagetype", "PGTY_offline") {
        Some(number) => (number as u32) << 24,
        None => !btf.enumerator("pagetype", "PG_offline").map_or(0x100, |bit| bit as u32),
    };
    let size = btf.size_of("page").expect("struct page");
    let descriptor = Maps::read(guest.kernel(), guest.memory()).vmemmap.offset(pfn as u64 * size);
    let at = guest.kernel().translate(guest.memory(), descriptor).expect("a descriptor").phys.0;
    // `private` belongs to the balloon. Its low bits may look like any order.
    let balloon = guest.direct(pfn as u64 * PAGE_SIZE + 10).0;
    let written = [
        (at + offset("page_type"), page_type.to_le_bytes().to_vec()),
        (at + offset("private"), balloon.to_le_bytes().to_vec()),
    ];
    let pages = guest.with(&written, |guest| Pages::read(guest.kernel(), guest.memory()).expect("page descriptors"));
    assert_eq!((pages.usage(pfn as u64), &pages.corruption[..]), (Use::Free, &[][..]));
    let others = (0..).zip(before).filter(|(other, _)| *other != pfn as u64);
    let changed: Vec<_> = others.filter(|&(other, was)| pages.usage(other) != was).collect();
    assert!(changed.is_empty(), "frame {pfn} took with it {changed:?}");
}
