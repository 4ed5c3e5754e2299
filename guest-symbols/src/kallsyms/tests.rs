//! Images of each layout of the tables, and images whose tables lead out of them.

use super::*;

const BASE: u64 = 0xffff_ffff_8100_0000;
/// More than 256, so that there are several markers, and enough to be accepted.
const COUNT: usize = 1_500;

/// The layouts in the table of the module's documentation.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Layout {
    OffsetsFirst,
    OffsetsFirstWithSequences,
    OffsetsLast,
    RelativeToOwnPlace,
    /// The same, with tables that end in the middle of an aligned word.
    RelativeToOwnPlaceOdd,
}

impl Layout {
    fn is_own_place(self) -> bool {
        matches!(self, Layout::RelativeToOwnPlace | Layout::RelativeToOwnPlaceOdd)
    }
}

const BANNER: usize = 900;

fn name(i: usize) -> String {
    if i == BANNER {
        return "Dlinux_banner".to_owned();
    }
    // One name is longer than 127 tokens, so that its length takes two bytes.
    if i == 700 { format!("t{}", "x".repeat(200)) } else { format!("tfunction_{i}") }
}

/// Bytes that occur in no name are tokens of several letters, as after compression.
fn token(c: u8) -> Vec<u8> {
    if c.is_ascii_graphic() && c != b':' { vec![c] } else { b"ab".to_vec() }
}

fn align(image: &mut Vec<u8>, to: usize) {
    image.resize(image.len().next_multiple_of(to), 0);
}

/// A kernel image in this layout: a per-CPU symbol at 0x1000, then functions at intervals of 16
/// bytes from `BASE`.
fn image(layout: Layout) -> Vec<u8> {
    image_of(layout, name)
}

fn image_of(layout: Layout, name: impl Fn(usize) -> String) -> Vec<u8> {
    let mut image = vec![0xcc; 16 * COUNT + 64];
    image[16 * BANNER..16 * BANNER + 14].copy_from_slice(b"Linux version ");
    align(&mut image, 8);
    let addr = |i: usize| BASE + 16 * i as u64;
    let absolute = |image: &mut Vec<u8>| {
        image.extend(0x1000u32.to_le_bytes());
        (0..COUNT).for_each(|i| image.extend(((BASE as i64 - 1 - addr(i) as i64) as i32).to_le_bytes()));
        align(image, 8);
        image.extend(BASE.to_le_bytes());
    };
    if matches!(layout, Layout::OffsetsFirst | Layout::OffsetsFirstWithSequences) {
        absolute(&mut image);
    }
    image.extend((COUNT as u32 + 1).to_le_bytes());
    if !layout.is_own_place() {
        align(&mut image, 8);
    }
    let (first, mut markers) = (image.len(), Vec::new());
    for (i, name) in std::iter::once("Apercpu".to_owned()).chain((0..COUNT).map(name)).enumerate() {
        if i % 256 == 0 {
            markers.push((image.len() - first) as u32);
        }
        match name.len() {
            n @ ..0x80 => image.push(n as u8),
            n => image.extend([(n & 0x7f | 0x80) as u8, (n >> 7) as u8]),
        }
        // Every token is one byte, the byte itself.
        image.extend(name.bytes());
    }
    align(&mut image, 8);
    markers.iter().for_each(|m| image.extend(m.to_le_bytes()));
    align(&mut image, 8);
    if layout == Layout::OffsetsFirstWithSequences {
        image.extend(std::iter::repeat_n(0x55, 3 * (COUNT + 1)));
        align(&mut image, 8);
    }
    if layout == Layout::RelativeToOwnPlaceOdd {
        // The tables then end in the first half of a word of 8 bytes.
        let end = image.len() + (0..=255u8).map(|c| token(c).len() + 1).sum::<usize>();
        image.extend(std::iter::repeat_n(0, (4 + 8 - end.next_multiple_of(4) % 8) % 8));
    }
    let tokens = image.len();
    let mut index = Vec::new();
    for c in 0..=255u8 {
        index.push((image.len() - tokens) as u16);
        image.extend(token(c));
        image.push(0);
    }
    align(&mut image, if layout == Layout::RelativeToOwnPlaceOdd { 4 } else { 8 });
    index.iter().for_each(|i| image.extend(i.to_le_bytes()));
    match layout {
        Layout::OffsetsFirst | Layout::OffsetsFirstWithSequences => {}
        Layout::OffsetsLast => absolute(&mut image),
        Layout::RelativeToOwnPlace | Layout::RelativeToOwnPlaceOdd => {
            for i in 0..=COUNT {
                let target = if i == 0 { BASE } else { addr(i - 1) };
                let place = BASE + image.len() as u64;
                image.extend((target.wrapping_sub(place) as u32).to_le_bytes());
            }
        }
    }
    image.extend([0; 64]);
    image
}

#[test]
#[cfg_attr(miri, ignore = "a table of a kernel's size takes minutes under Miri")]
fn every_layout() {
    use Layout::*;
    let layouts = [OffsetsFirst, OffsetsFirstWithSequences, OffsetsLast, RelativeToOwnPlace, RelativeToOwnPlaceOdd];
    for layout in layouts {
        let table = decode(&image(layout), BASE, None).unwrap_or_else(|e| panic!("{layout:?}: {e}")).symbols;
        assert_eq!(table.len(), COUNT + 1, "{layout:?}");
        assert_eq!(table.lookup("function_0"), Some(BASE), "{layout:?}");
        assert_eq!(table.lookup("function_1499"), Some(BASE + 16 * 1499), "{layout:?}");
        assert_eq!(table.lookup(&"x".repeat(200)), Some(BASE + 16 * 700), "{layout:?}");
        let percpu = if layout.is_own_place() { BASE } else { 0x1000 };
        assert_eq!(table.lookup("percpu"), Some(percpu), "{layout:?}");
    }
}

/// The image is complete except for the banner, which proves the table.
#[test]
#[cfg_attr(miri, ignore = "a table of a kernel's size takes minutes under Miri")]
fn nothing_is_read_outside_of_its_place() {
    use Layout::*;
    for layout in [OffsetsFirst, OffsetsFirstWithSequences, OffsetsLast, RelativeToOwnPlace, RelativeToOwnPlaceOdd] {
        let whole = image(layout);
        let decoded = decode(&whole, BASE, None).unwrap_or_else(|e| panic!("{layout:?}: {e}"));
        let mut less = vec![0; whole.len()];
        less[16 * BANNER..16 * BANNER + 14].copy_from_slice(b"Linux version ");
        assert!(decode(&less, BASE, None).is_err(), "{layout:?}");
        let place = decoded.place.clone();
        less[place.clone()].copy_from_slice(&whole[place]);
        let again = decode(&less, BASE, None).unwrap_or_else(|e| panic!("{layout:?}: {e}"));
        assert!(again.symbols.iter().eq(decoded.symbols.iter()), "{layout:?}");
        assert_eq!(again.place, decoded.place, "{layout:?}");
    }
}

/// The last two entries of the index, which is the last part here, lead out of the image and back.
#[test]
#[cfg_attr(miri, ignore = "a table of a kernel's size takes minutes under Miri")]
fn an_index_that_leads_out_of_the_image() {
    let whole = image(Layout::OffsetsFirst);
    for (place, at) in [(255, u16::MAX), (254, u16::MAX - 1), (255, 0)] {
        let mut bad = whole[..whole.len() - 64].to_vec();
        let index = bad.len() - 512 + 2 * place;
        bad[index..index + 2].copy_from_slice(&at.to_le_bytes());
        assert_eq!(decode(&bad, BASE, None).err(), Some(KallsymsError::NoTokens));
    }
}

/// Three hundred tokens of two letters each.
#[test]
#[cfg_attr(miri, ignore = "a table of a kernel's size takes minutes under Miri")]
fn a_name_that_no_kernel_could_hold() {
    let with = |n: usize| {
        image_of(Layout::OffsetsLast, |i| if i == 700 { format!("t{}", "\u{1}".repeat(n)) } else { name(i) })
    };
    assert_eq!(decode(&with(200), BASE, None).map(|k| k.symbols.len()).ok(), Some(COUNT + 1));
    assert_eq!(decode(&with(300), BASE, None).err(), Some(KallsymsError::NoAddresses(COUNT as u32 + 1)));
}

#[test]
#[cfg_attr(miri, ignore = "a table of a kernel's size takes minutes under Miri")]
fn what_is_no_kernel_is_refused() {
    assert_eq!(decode(&[0; 4096], BASE, None).err(), Some(KallsymsError::NoTokens));
    let whole = image(Layout::OffsetsLast);
    // A truncated image is an error, not a panic.
    for len in (0..whole.len()).step_by(97) {
        let _ = decode(&whole[..len], BASE, None);
    }
    // An image without its names.
    let mut bad = whole.clone();
    bad[16 * COUNT..16 * COUNT + 20_000].fill(0);
    assert!(matches!(decode(&bad, BASE, None).err(), Some(KallsymsError::NoNames(_))));
}
