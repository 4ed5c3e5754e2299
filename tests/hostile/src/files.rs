//! Files that the user names.

use crate::input::Input;
use crate::kallsyms;
use cli::image;
use guest_symbols::symbol_file::{SymbolFile, to_map};
use guest_symbols::symbols::SymbolTable;
use std::path::Path;

/// The banner of the running kernel, and its offset in the image.
const BANNER: &[u8] = b"Linux version 6.1.0-test (gcc) #1";
const BANNER_AT: usize = 4096;
const RELEASE: &str = "6.1.0-test";
/// The address of the image.
const BASE: u64 = 0xffff_ffff_8120_0000;

/// A symbol file: ELF, System.map or saved kallsyms.
pub fn symbol_file(data: &[u8]) {
    let path = Path::new("a/System.map-6.1.0-other");
    let file = match SymbolFile::parse(path, data) {
        Ok(file) => file,
        Err(why) => return assert!(why.to_string().len() < 1000, "{why}"),
    };
    let table = file.table();
    kallsyms::agrees(&table);
    // Written as a System.map and read again, the table is the same.
    let words = table.iter().filter(|s| !s.name.contains(|c: char| c.is_ascii_whitespace())).count();
    let map = to_map(&table);
    if let Ok(again) = SymbolFile::parse(path, map.as_bytes()) {
        let count = again.table().len();
        assert!(count <= words && (!data.is_ascii() || count == words), "{count} of {words}");
    }
    let mut memory = vec![0; 8192];
    memory[BANNER_AT..BANNER_AT + BANNER.len()].copy_from_slice(BANNER);
    if let Ok(slid) = file.for_kernel(&memory, BASE, BASE, RELEASE, None) {
        assert_eq!(slid.lookup("linux_banner").map(|at| at >= BASE), Some(true));
        kallsyms::agrees(&slid);
        let own = file.for_kernel(&memory, BASE, BASE, RELEASE, Some(&slid)).map(|t| t.len());
        // Ambiguous names are rejected.
        assert!(own.is_ok_and(|len| len == slid.len()) || has_twins(&slid));
    }
}

fn has_twins(table: &SymbolTable) -> bool {
    table.iter().any(|s| table.lookup(s.name) != Some(s.addr))
}

/// A kernel image. The first byte selects the compression, as in `payload`.
pub fn boot_image(data: &[u8]) {
    let mut input = Input(data);
    let packed = input.u8();
    let made;
    let data = if packed & 1 == 0 {
        input.0
    } else {
        made = boot(input.0);
        &made
    };
    let _ = image::has_symbol_table(data);
    let elf = if image::is_boot_image(data) {
        match image::unpack(data) {
            Ok(elf) => elf,
            Err(why) => return assert!(why.to_string().len() < 1000, "{why}"),
        }
    } else {
        data.to_vec()
    };
    assert!(elf.len() <= image::MOST as usize);
    match image::load(&elf) {
        Ok(image::Loaded { start, memory }) => {
            assert!(start >= 0xffff_ffff_8000_0000 && memory.len() <= 1 << 30);
            if memory.len() < 1 << 20
                && let Ok(found) = guest_symbols::kallsyms::decode(&memory, start, None)
            {
                kallsyms::agrees(&found.symbols);
            }
        }
        Err(why) => assert!(why.to_string().len() < 1000, "{why}"),
    }
}

/// A boot image with one sector of set-up code (Documentation/arch/x86/boot.rst).
pub fn boot(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend(payload);
    image
}
