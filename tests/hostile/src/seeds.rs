//! Seed inputs: valid data of each target's format.

mod cores;
mod dwarf;
mod files;
mod image;
mod text;

use crate::snapshots;

/// The inputs of a target, by name.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "kallsyms" => {
            let images = image::LAYOUTS.map(|layout| [vec![0], image::kallsyms(layout)].concat());
            images.into_iter().chain([after(3, &patches(13))]).collect()
        }
        "btf" => vec![after(0, &image::btf()), after(3, &patches(9))],
        "types" => vec![dwarf::sections(4), dwarf::sections(5), dwarf::kept()],
        "unwind" => image::stacks(),
        "modules" => vec![image::module(), image::generated()],
        "pages" | "slabs" | "percpu" | "vmap" | "tasks" => vec![Vec::new(), patches(14), patches(28), patches(140)],
        "paging" => vec![image::tables(4), image::tables(5)],
        "symbol_file" => files::symbols(),
        "boot_image" => files::boot_images(),
        "snapshot" => {
            let contents = files::snapshot();
            vec![after(1, &contents), after(0, &snapshots::frame(&contents))]
        }
        "images" => cores::all(),
        "control" => text::requests(),
        "reports" => text::reports(),
        "suppressions" => text::suppressions(),
        "options" => text::options(),
        "console" => text::console(),
        "whole_check" => [0, 0x3f, 0xff].into_iter().flat_map(|asked| [after(asked, &[0]), whole(asked)]).collect(),
        _ => Vec::new(),
    }
}

fn after(first: u8, rest: &[u8]) -> Vec<u8> {
    [&[first], rest].concat()
}

/// Bytes without a pattern. They are always the same.
fn patches(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn whole(asked: u8) -> Vec<u8> {
    [vec![asked, 1], patches(13 + usize::from(asked >> 6) * 8 + 3 * 14)].concat()
}
