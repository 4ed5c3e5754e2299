//! BTF, the kernel's types.

use crate::guest::Guest;
use crate::input::Input;
use guest_symbols::btf::Btf;
use guest_symbols::memory::{GuestMemory, PhysAddr};
use std::cell::RefCell;

/// Names that are looked up, and types.
const NAMES: usize = 48;
const TYPES: u32 = 3000;
/// The lookups of the program.
const STRUCTS: [&str; 8] =
    ["page", "slab", "kmem_cache", "task_struct", "module", "vmap_area", "pcpu_chunk", "rw_semaphore"];
const MEMBERS: [&str; 8] = ["flags", "freelist", "list", "thread.sp", "core_layout.base", "vm", "a.b", "objects"];

/// The first byte selects the input that follows: a blob, or changes to the BTF of the snapshot's
/// kernel.
pub fn check(data: &[u8]) {
    thread_local! { static BLOB: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) } }
    let mut input = Input(data);
    if input.u8() & 3 != 3 {
        return hold(input.0);
    }
    BLOB.with(|blob| {
        let mut blob = blob.borrow_mut();
        let blob = blob.get_or_insert_with(|| {
            let guest = Guest::new(|_, memory| {
                let _ = memory.read_u64(PhysAddr(memory.ranges()[0].start));
            });
            guest.kernel().btf.as_ref().expect("types").blob().to_vec()
        });
        let mut before = Vec::new();
        for _ in 0..16 {
            let (at, form, value) = (input.u32() as usize, input.u8(), input.u32());
            let at = match form & 4 {
                // The header.
                0 => at % 24,
                _ => (at % (blob.len() - 4)) & !3,
            };
            let len = 1 << (form % 3);
            before.push((at, blob[at..at + len].to_vec()));
            blob[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
            if input.is_empty() {
                break;
            }
        }
        hold(blob);
        before.iter().rev().for_each(|(at, was)| blob[*at..*at + was.len()].copy_from_slice(was));
    });
}

fn hold(data: &[u8]) {
    let (btf, len) = (Btf::parse(data), Btf::blob_len(data));
    let Ok(btf) = btf else { return };
    let len = len.expect("it was parsed");
    assert!(len <= data.len() && btf.blob().len() == len);
    // Type 0 is void. Every other type has at least 12 bytes.
    assert!(btf.len() <= 1 + data.len() / 12);
    let again = Btf::parse(btf.blob()).expect("its own bytes");
    assert_eq!(again.len(), btf.len());
    let strings = btf.blob().rsplit(|b| *b == 0).filter(|s| !s.is_empty()).filter_map(|s| std::str::from_utf8(s).ok());
    let names: Vec<&str> = STRUCTS.into_iter().chain(strings.take(NAMES)).collect();
    let paths: Vec<&str> = MEMBERS.into_iter().chain(names.iter().skip(STRUCTS.len()).copied()).collect();
    for name in &names {
        assert_eq!(again.size_of(name), btf.size_of(name));
        for path in &paths {
            let member = btf.member(name, path);
            assert_eq!(member.map(|m| m.offset()), btf.offset_of(name, path));
            assert!(member.is_none() || btf.size_of(name).is_some());
            if let Some(member) = member {
                let _ = (btf.type_size(member.type_id), btf.array_len(member.type_id));
            }
            let _ = btf.enumerator(name, path);
        }
        assert!(btf.parameters(name).is_none_or(|p| p.len() <= 0xffff));
        let _ = (btf.return_size(name), btf.returns_pointer_to(name));
        let numbers = btf.numbers(name).unwrap_or_default();
        assert!(numbers.is_sorted_by(|a, b| a.end < b.start), "{numbers:?}");
        assert!(numbers.last().is_none_or(|last| Some(last.end) <= btf.size_of(name)));
    }
    for id in 0..TYPES.min(btf.len() as u32 + 2) {
        let _ = (btf.type_size(id), btf.array_len(id));
    }
}
