//! Types from debugging information, and types from the cache.

use crate::input::Input;
use guest_symbols::btf::Btf;
use guest_symbols::types::cache;
use guest_symbols::types::dwarf::{Info, Sections, translate};

/// The build ID of the file in the cache.
const ID: [u8; 20] = [0xab; 20];
/// The most bytes of BTF for each byte of debugging information. A member takes at least one byte
/// here. In BTF it takes 12 bytes and its name.
const MOST: usize = 64;

/// The first byte selects a file of the cache, or sections, each with its length before it.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    if input.u8() & 1 == 1 {
        return kept(input.0);
    }
    let mut section = || {
        let len = usize::from(input.u16());
        input.bytes(len)
    };
    let (info, abbrev, strings, string_offsets, line_strings) = (section(), section(), section(), section(), section());
    let sections = Sections { info: Info::Memory(info), abbrev, strings, line_strings, string_offsets };
    match translate(&sections) {
        Ok(blob) => {
            assert!(blob.len() <= 100 + data.len() + MOST * info.len().max(1), "{} of {}", blob.len(), data.len());
            // The result does not depend on the order of the threads.
            assert_eq!(translate(&sections).ok().as_deref(), Some(&*blob));
            let btf = Btf::parse(&blob).expect("what is written can be read");
            assert_eq!(btf.blob().len(), blob.len());
            for (name, _) in btf.definitions().take(32) {
                let Some((_, name)) = name.split_once(' ') else { continue };
                let _ = (btf.size_of(name), btf.numbers(name), btf.parameters(name), btf.returns_pointer_to(name));
            }
            assert_eq!(cache::decode(&cache::encode(&ID, &blob), &ID), Some(&*blob));
        }
        Err(why) => assert!(why.to_string().len() < 1000, "{why}"),
    }
}

fn kept(data: &[u8]) {
    let Some(blob) = cache::decode(data, &ID) else { return };
    assert_eq!(cache::encode(&ID, blob), data);
    if let Ok(btf) = Btf::parse(blob) {
        assert!(btf.len() <= 1 + blob.len() / 12);
    }
}
