//! A free page on a list of `boot_pageset` (mm/page_alloc.c, 5.10 to 7.3). All zones share it until
//! setup_per_cpu_pageset(). Zones without memory keep it. The page counts once, though several
//! zones lead to it.

use guest_symbols::memory::VirtAddr;
use guest_symbols::pages::{Maps, Pages, Use};
use hostile::guest::Guest;

#[test]
fn a_list_that_zones_share_is_walked_once() {
    let mut guest = Guest::new(|snapshot, memory| {
        Pages::read(snapshot.moment().kernel, memory).expect("page descriptors");
    });
    let (kernel, memory) = (guest.kernel(), guest.memory());
    let btf = kernel.btf.as_ref().expect("types");
    let member = |of, name| btf.offset_of(of, name).unwrap_or_else(|| panic!("no {of}.{name}"));
    let phys = |at: VirtAddr| kernel.translate(memory, at).expect("kernel memory").phys.0;

    // The first two zones, DMA and DMA32, have memory. They get the set of the others, as at boot.
    let node = kernel
        .symbol("contig_page_data")
        .or_else(|| kernel.read_u64(memory, kernel.symbol("node_data")?).ok().map(VirtAddr));
    let zones = node.expect("a node").offset(member("pglist_data", "node_zones"));
    let sets = |i: u64| zones.offset(i * btf.size_of("zone").expect("zones") + member("zone", "per_cpu_pageset"));
    let set = kernel.symbol("boot_pageset").expect("boot_pageset").0;
    let cpu = kernel.variable(memory, "__per_cpu_offset").expect("the first CPU's offset");
    let head = VirtAddr(set.wrapping_add(cpu)).offset(member("per_cpu_pages", "lists"));

    let uses = Pages::read(kernel, memory).expect("page descriptors").uses().to_vec();
    let pfn = uses.iter().position(|u| *u == Use::Kernel).expect("a page") as u64;
    let page = Maps::read(kernel, memory).vmemmap.offset(pfn * btf.size_of("page").expect("struct page"));
    let link = page.offset(btf.offset_of("page", "pcp_list").unwrap_or_else(|| member("page", "lru")));

    let mut written: Vec<(u64, Vec<u8>)> = (0..2).map(|i| (phys(sets(i)), set.to_le_bytes().to_vec())).collect();
    written.push((phys(head), link.0.to_le_bytes().to_vec()));
    written.push((phys(link), head.0.to_le_bytes().to_vec()));
    // A page on such a list has no references.
    written.push((phys(page.offset(member("page", "_refcount"))), vec![0; 4]));
    let pages = guest.with(&written, |guest| Pages::read(guest.kernel(), guest.memory()).expect("page descriptors"));
    assert_eq!((pages.usage(pfn), &pages.corruption[..]), (Use::Free, &[][..]));
}
