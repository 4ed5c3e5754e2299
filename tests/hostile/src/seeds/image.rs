//! Data of a kernel's memory: symbols, types, unwinding tables, modules, page tables.

use crate::kallsyms::BASE;
use crate::modules;

/// The layouts of the table in guest-symbols/src/kallsyms.rs.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Layout {
    OffsetsFirst,
    OffsetsFirstWithSequences,
    OffsetsLast,
    RelativeToOwnPlace,
}

pub(super) const LAYOUTS: [Layout; 4] =
    [Layout::OffsetsFirst, Layout::OffsetsFirstWithSequences, Layout::OffsetsLast, Layout::RelativeToOwnPlace];

/// The number of symbols: a few more than the least that is accepted.
const COUNT: usize = 1010;

fn align(image: &mut Vec<u8>, to: usize) {
    image.resize(image.len().next_multiple_of(to), 0);
}

/// An image with the banner and a table of functions with short names. All but the first few tokens
/// have one byte.
pub(super) fn kallsyms(layout: Layout) -> Vec<u8> {
    let addr = |i: usize| BASE + 4 * i as u64;
    let mut image = vec![0xcc; 4 * COUNT + 64];
    image[..14].copy_from_slice(b"Linux version ");
    align(&mut image, 8);
    let absolute = |image: &mut Vec<u8>| {
        (0..COUNT).for_each(|i| image.extend(((BASE as i64 - 1 - addr(i) as i64) as i32).to_le_bytes()));
        align(image, 8);
        image.extend(BASE.to_le_bytes());
    };
    if matches!(layout, Layout::OffsetsFirst | Layout::OffsetsFirstWithSequences) {
        absolute(&mut image);
    }
    image.extend((COUNT as u32).to_le_bytes());
    if layout != Layout::RelativeToOwnPlace {
        align(&mut image, 8);
    }
    let (first, mut markers) = (image.len(), Vec::new());
    for i in 0..COUNT {
        if i % 256 == 0 {
            markers.push((image.len() - first) as u32);
        }
        let name = if i == 0 { "Tlinux_banner".to_owned() } else { format!("t{i:x}") };
        image.push(name.len() as u8);
        image.extend(name.bytes());
    }
    align(&mut image, 8);
    markers.iter().for_each(|m| image.extend(m.to_le_bytes()));
    align(&mut image, 8);
    if layout == Layout::OffsetsFirstWithSequences {
        image.extend(std::iter::repeat_n(0x55, 3 * COUNT));
        align(&mut image, 8);
    }
    let tokens = image.len();
    let mut index = Vec::new();
    for c in 0..=255u8 {
        index.push((image.len() - tokens) as u16);
        image.extend(if c.is_ascii_graphic() && c != b':' { vec![c] } else { b"ab".to_vec() });
        image.push(0);
    }
    align(&mut image, 8);
    index.iter().for_each(|i| image.extend(i.to_le_bytes()));
    match layout {
        Layout::OffsetsFirst | Layout::OffsetsFirstWithSequences => {}
        Layout::OffsetsLast => absolute(&mut image),
        Layout::RelativeToOwnPlace => (0..COUNT).for_each(|i| {
            let place = BASE + image.len() as u64;
            image.extend((addr(i).wrapping_sub(place) as u32).to_le_bytes());
        }),
    }
    image.extend([0; 16]);
    image
}

/// Types: integers, a pointer, an array, nested structs, a union, functions, enumerators.
pub(super) fn btf() -> Vec<u8> {
    let mut strings = vec![0u8];
    let mut name = |s: &str| {
        let at = strings.len() as u32;
        strings.extend([s.as_bytes(), &[0]].concat());
        at
    };
    let info = |kind: u32, count: u32, flag: u32| kind << 24 | count | flag << 31;
    let mut t: Vec<u32> = Vec::new();
    t.extend([name("u64"), info(1, 0, 0), 8, 64]); // 1
    t.extend([0, info(2, 0, 0), 5]); // 2: a pointer to 5
    t.extend([0, info(4, 2, 1), 4, name("objects"), 1, 4 << 24, name("b"), 1, 12 << 24 | 4]); // 3
    t.extend([0, info(5, 2, 0), 8, 0, 3, 0, name("freelist"), 2, 0]); // 4
    t.extend([name("page"), info(4, 3, 0), 64, name("flags"), 1, 0, 0, 4, 64, name("list"), 6, 128]); // 5
    t.extend([0, info(3, 0, 0), 0, 1, 1, 5]); // 6: an array
    t.extend([name("gfp_t"), info(8, 0, 0), 9]); // 7
    t.extend([0, info(13, 2, 0), 2, name("size"), 1, name("gfp"), 7]); // 8
    t.extend([0, info(10, 0, 0), 1]); // 9
    t.extend([name("kmalloc"), info(12, 0, 0), 8]); // 10
    t.extend([name("pageflags"), info(6, 2, 0), 4, name("PG_slab"), 7, name("PG_reserved"), 9]); // 11
    t.extend([name("big"), info(19, 1, 0), 8, name("BIG"), 1, 2]); // 12
    let types: Vec<u8> = t.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut out = vec![0x9f, 0xeb, 1, 0];
    for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
        out.extend(word.to_le_bytes());
    }
    [out, types, strings].concat()
}

/// Stacks with frames of calls, interrupts and frame pointers.
pub(super) fn stacks() -> Vec<Vec<u8>> {
    let stack = 0xffff_c900_0000_4000u64;
    let text = |offset: u64| 0xffff_ffff_8100_0000 + offset;
    let make = |flags: u8, bp: u64, entries: &[[u8; 6]], words: &[u64]| {
        let mut out = vec![flags];
        out.extend([0x08, 0x14, 0, 0]);
        out.extend(bp.to_le_bytes());
        out.extend((entries.len() as u16).to_le_bytes());
        for entry in entries {
            out.extend(0u16.to_le_bytes());
            out.extend(entry);
        }
        out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        out
    };
    let calls = [[24, 0, 0, 0, 5, 2], [16, 0, 0xf0, 0xff, 4 | 1 << 4, 2], [8, 0, 0, 0, 5, 2], [0, 0, 0, 0, 0, 1]];
    let words = [0, 0, text(0x2408), stack + 0x20, text(0x3408), text(0x4408), 7, 8];
    let mut regs = vec![0; 24];
    (regs[16], regs[17], regs[19], regs[4]) = (text(0x1408), 0x10, stack + 0x98, stack + 0x40);
    regs.extend([text(0x2408), text(0x3408)]);
    let interrupt = [[0, 0, 0, 0, 5, 3 | 8], [24, 0, 0, 0, 5, 2], [0, 0, 0, 0, 0, 4]];
    vec![
        make(0, stack + 0x18, &calls, &words),
        make(4, stack + 0x18, &[], &words),
        make(2, stack, &interrupt, &regs),
        make(1, stack, &[[24, 0, 0, 0, 3, 2], [0, 0, 0, 0, 9, 2]], &words),
    ]
}

/// Bytes at offsets, for the end of the guest's RAM.
fn memory(parts: &[(u64, &[u8])]) -> Vec<u8> {
    let end = parts.iter().map(|(at, bytes)| *at as usize + bytes.len()).max().unwrap_or(0);
    let mut out = vec![0; end];
    parts.iter().for_each(|(at, bytes)| out[*at as usize..][..bytes.len()].copy_from_slice(bytes));
    out
}

/// A `struct module` with two address ranges, three symbols and an unwinding table.
pub(super) fn module() -> Vec<u8> {
    const CODE: u64 = 0xffff_ffff_c000_0000;
    let mut out = Vec::new();
    modules::with(|guest| {
        let at = |offset: u64| guest.direct(modules::place(guest) + offset).0.to_le_bytes();
        let kernel = guest.kernel();
        let field = |name: &str, path: &str| kernel.offset_of(name, path).unwrap_or(0);
        let part = kernel.btf.as_ref().and_then(|b| b.size_of("module_memory")).unwrap_or(0);
        let mem = |i: u64, member| field("module", "mem") + i * part + field("module_memory", member);
        let (kallsyms, symtab, strtab, ips, orcs) = (0x800, 0x840, 0x900, 0x940, 0x960);
        let symbol = |name: u32, value: u64| {
            [&name.to_le_bytes()[..], &[2, 0, 1, 0], &value.to_le_bytes(), &16u64.to_le_bytes()].concat()
        };
        let symbols = [symbol(1, CODE), symbol(6, CODE + 0x40), symbol(11, CODE + 0x2000)].concat();
        let relative = |i: u64| {
            let from = u64::from_le_bytes(at(ips + 4 * i));
            ((CODE + 0x40 * i).wrapping_sub(from) as i32).to_le_bytes()
        };
        let ip = [relative(0), relative(1)].concat();
        out = memory(&[
            (field("module", "name"), b"leaky\0"),
            (mem(0, "base"), &CODE.to_le_bytes()),
            (mem(0, "size"), &0x1000u32.to_le_bytes()),
            (mem(1, "base"), &(CODE + 0x2000).to_le_bytes()),
            (mem(1, "size"), &0x1000u32.to_le_bytes()),
            (field("module", "kallsyms"), &at(kallsyms)),
            (field("module", "arch.num_orcs"), &2u32.to_le_bytes()),
            (field("module", "arch.orc_unwind_ip"), &at(ips)),
            (field("module", "arch.orc_unwind"), &at(orcs)),
            (kallsyms + field("mod_kallsyms", "symtab"), &at(symtab)),
            (kallsyms + field("mod_kallsyms", "num_symtab"), &3u32.to_le_bytes()),
            (kallsyms + field("mod_kallsyms", "strtab"), &at(strtab)),
            (symtab, &symbols),
            (strtab, b"\0init\0exit\0data\0"),
            (ips, &ip),
            (orcs, &[8, 0, 0, 0, 5, 2, 16, 0, 0xf0, 0xff, 5 | 1 << 4, 2]),
        ]);
    });
    out
}

/// A `struct bpf_ksym`.
pub(super) fn generated() -> Vec<u8> {
    let mut out = Vec::new();
    modules::with(|guest| {
        let field = |path: &str| guest.kernel().offset_of("bpf_ksym", path).unwrap_or(0);
        out = memory(&[
            (field("start"), &0xffff_ffff_c010_0000u64.to_le_bytes()),
            (field("end"), &0xffff_ffff_c010_0100u64.to_le_bytes()),
            (field("name"), b"bpf_prog_0123456789abcdef_main\0"),
        ]);
    });
    out
}

/// Page tables that map a small, a large and a huge page.
pub(super) fn tables(levels: u8) -> Vec<u8> {
    let base = 0xffff_ffff_8000_0000u64;
    let mut out = vec![u8::from(levels == 5)];
    out.extend(if levels == 5 { 0x6000u64 } else { 0x1000 }.to_le_bytes());
    for at in [base + 0x3123, base + 0x20_1000, base - 0x4000_0000, 0, u64::MAX, base] {
        out.extend(at.to_le_bytes());
    }
    let entries = [
        (0x6ff8, 0x1001u64),
        (0x1ff8, 0x2001),
        (0x2ff0, 0x3001),
        (0x2fe8, 0x4000_0081),
        (0x3000, 0x4001),
        (0x3008, 0x20_0081 | 1 << 63),
        (0x4018, 0x7001 | 1 << 63),
    ];
    for (at, entry) in entries {
        out.extend((at as u16).to_le_bytes());
        out.extend(entry.to_le_bytes());
    }
    out
}
