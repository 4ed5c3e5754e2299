//! A small blob of types: complete, truncated, and with recursive types.

use super::*;

/// `struct page { u64 flags; union { struct { u32 a:4, b:12; }; u64 *p; }; }` and
/// `u64 *f(u64 size, u32 gfp)`.
fn blob() -> Vec<u8> {
    let mut strings = vec![0u8];
    let mut name = |s: &str| {
        let at = strings.len() as u32;
        strings.extend_from_slice(s.as_bytes());
        strings.push(0);
        at
    };
    let mut t: Vec<u32> = Vec::new();
    let info = |kind: u32, vlen: u32, flag: bool| kind << 24 | vlen | (flag as u32) << 31;
    t.extend([name("u64"), info(kind::INT, 0, false), 8, 64]); // 1
    t.extend([0, info(kind::PTR, 0, false), 1]); // 2
    t.extend([0, info(kind::STRUCT, 2, true), 4]); // 3
    t.extend([name("a"), 1, 4 << 24, name("b"), 1, 12 << 24 | 4]);
    t.extend([0, info(kind::UNION, 2, false), 8]); // 4
    t.extend([0, 3, 0, name("p"), 2, 0]);
    t.extend([name("page"), info(kind::STRUCT, 2, false), 16]); // 5
    t.extend([name("flags"), 1, 0, 0, 4, 64]);
    t.extend([0, info(kind::FUNC_PROTO, 2, false), 2, name("size"), 1, name("gfp"), 1]); // 6
    t.extend([name("f"), info(kind::FUNC, 0, false), 6]); // 7
    t.extend([name("e"), info(kind::ENUM, 2, false), 4, name("X"), 7, name("Y"), 9]); // 8
    let types: Vec<u8> = t.iter().flat_map(|w| w.to_le_bytes()).collect();
    let mut out = vec![0x9f, 0xeb, 1, 0];
    for w in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
        out.extend(w.to_le_bytes());
    }
    out.extend(types);
    out.extend(strings);
    out
}

/// The bytes that were read are again a valid blob.
#[test]
fn a_header_that_is_shorter_than_its_own_fields() {
    let mut short = blob();
    short[4] = 20;
    assert_eq!(Btf::parse(&short).err(), Some(BtfError::Header));
}

/// An array of itself, and eight structs, each with a thousand unnamed members of the next.
#[test]
#[cfg_attr(miri, ignore = "so many members take an hour under Miri")]
fn types_without_end() {
    let info = |kind: u32, vlen: u32| kind << 24 | vlen;
    let mut t: Vec<u32> = vec![0, info(kind::ARRAY, 0), 0, 1, 1, 3];
    for id in 2..10 {
        t.extend([1, info(kind::STRUCT, 1000), 8]);
        (0..1000).for_each(|_| t.extend([0, if id < 9 { id + 1 } else { 1 }, 0]));
    }
    let types: Vec<u8> = t.iter().flat_map(|w| w.to_le_bytes()).collect();
    let strings = b"\0a\0";
    let head = [0x1_eb9f, 24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
    let head = head.iter().flat_map(|w: &u32| w.to_le_bytes());
    let btf = Btf::parse(&head.chain(types).chain(*strings).collect::<Vec<_>>()).unwrap();
    assert_eq!((btf.len(), btf.type_size(1), btf.array_len(1)), (10, None, Some(3)));
    assert_eq!((btf.member("a", "b"), btf.numbers("a")), (None, None));
}

#[test]
fn members_through_anonymous_structs() {
    let btf = Btf::parse(&blob()).unwrap();
    assert_eq!(btf.size_of("page"), Some(16));
    assert_eq!(btf.offset_of("page", "p"), Some(8));
    let b = btf.member("page", "b").unwrap();
    assert_eq!((b.bit_offset, b.bits), (68, Some(12)));
    assert_eq!(btf.offset_of("page", "none"), None);
}

#[test]
fn prototypes_and_enumerators() {
    let btf = Btf::parse(&blob()).unwrap();
    assert_eq!(btf.parameters("f"), Some(vec!["size", "gfp"]));
    assert_eq!(btf.return_size("f"), Some(8));
    assert_eq!(btf.enumerator("e", "Y"), Some(9));
    assert_eq!(btf.enumerator("e", "Z"), None);
}

#[test]
fn truncation_never_panics() {
    let blob = blob();
    for len in 0..blob.len() {
        assert!(Btf::parse(&blob[..len]).is_err());
    }
    // A single corrupt byte does not cause a panic either.
    for at in 0..blob.len() {
        let mut bad = blob.clone();
        bad[at] ^= 0xff;
        if let Ok(btf) = Btf::parse(&bad) {
            let _ = (btf.member("page", "b"), btf.parameters("f"), btf.enumerator("e", "Y"));
        }
    }
}
