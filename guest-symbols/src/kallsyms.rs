//! The kernel's own compressed symbol table, in the layout of scripts/kallsyms.c. It is found in a
//! kernel image by its structure alone.
//!
//! There are four layouts. All consist of the same parts in the read-only data:
//!
//! | kernels | order | address of symbol i |
//! |---|---|---|
//! | 4.6 to 6.0 | offsets, relative_base, num_syms, names, markers, token_table, token_index | see [`Base`] |
//! | 6.1 to 6.3 | the same with seqs_of_names after markers | same |
//! | 6.4 to 7.2 | num_syms, names, markers, token_table, token_index, offsets, relative_base, seqs | same |
//! | 7.3 on | the same without relative_base; names 4 bytes after num_syms | relative to the offset's own place |
//!
//! The layout is not chosen by version. The token table is found by its tokens for digits. The
//! names before it are found by decoding all of them and comparing with the markers. The layout of
//! the addresses is the one in which text symbols ascend and are inside the image.

use crate::memory::{u32_at, u64_at};
use crate::symbols::{SymbolTable, SymbolTableBuilder};
use memchr::memmem;
use std::ops::Range;

/// The fewest and most symbols that are accepted. A tinyconfig kernel has about 20,000, and
/// allyesconfig fewer than 400,000.
const SYMBOLS: std::ops::RangeInclusive<u32> = 1_000..=4_000_000;
/// The largest distance in bytes from the start of the names to the token table.
const MAX_NAMES: usize = 32 << 20;
/// The longest name of the kernel (KSYM_NAME_LEN), with its type letter.
const MAX_NAME: usize = 513;
/// The most bytes of all names together. Stock kernels have about 5 MiB.
const MAX_TEXT: usize = 128 << 20;
/// The most tokens and names that a search examines. A kernel needs a few million.
const MAX_STEPS: usize = 1 << 27;

/// Why an image has no usable symbol table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KallsymsError {
    /// There is no token table. The kernel has no CONFIG_KALLSYMS, or it is not Linux.
    #[error("no kallsyms token table")]
    NoTokens,
    /// There is a token table at this offset in the image, but there are no matching names.
    #[error("a kallsyms token table at image offset {0:#x}, but no names before it")]
    NoNames(usize),
    /// There are names, but no layout of the addresses fits.
    #[error("{0} kallsyms names, but no addresses that fit them")]
    NoAddresses(u32),
}

/// The 256 strings that names are made of.
struct Tokens<'a> {
    strings: Vec<&'a [u8]>,
    /// Offsets in the image of the table, and of the end of the index after it.
    start: usize,
    end: usize,
}

/// The location of the names in the image.
struct Names {
    /// Offset of num_syms.
    count_at: usize,
    count: u32,
    first: usize,
}

/// How an `i32` is converted to an address.
#[derive(Debug, Clone, Copy)]
enum Base {
    /// A negative value is `base - 1 - value`. Other values are absolute
    /// (CONFIG_KALLSYMS_ABSOLUTE_PERCPU).
    AbsolutePercpu(u64),
    /// `base + value`, unsigned.
    Relative(u64),
    /// The virtual address of the value itself plus the signed value.
    OwnPlace(u64),
}

impl Base {
    fn address(self, i: usize, raw: u32) -> u64 {
        match self {
            Base::AbsolutePercpu(base) => match raw as i32 {
                o if o < 0 => base.wrapping_sub(1).wrapping_sub(o as i64 as u64),
                o => o as u64,
            },
            Base::Relative(base) => base.wrapping_add(raw.into()),
            Base::OwnPlace(table) => table.wrapping_add(4 * i as u64).wrapping_add(raw as i32 as i64 as u64),
        }
    }
}

/// The decoded table.
pub struct Kallsyms {
    /// Its symbols.
    pub symbols: SymbolTable,
    /// The part of the image that it was read from, in bytes from the image's start.
    pub place: Range<usize>,
}

/// Finds and decodes kallsyms in a kernel image.
///
/// `image` is the kernel's memory from virtual address `base` on, with the slide included. It may
/// start before the kernel and end after it. It should contain the kernel's read-only data. `at` is
/// the virtual address of some code of that kernel, if known. It distinguishes the kernel from an
/// earlier one that is still in memory.
///
/// # Errors
/// [`KallsymsError`], which shows how far decoding came. The time is bounded for any content.
pub fn decode(image: &[u8], base: u64, at: Option<u64>) -> Result<Kallsyms, KallsymsError> {
    let mut error = KallsymsError::NoTokens;
    let mut steps = MAX_STEPS;
    for digits in memmem::find_iter(image, b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0") {
        if steps == 0 {
            break;
        }
        steps = steps.saturating_sub(256);
        let Some(tokens) = find_tokens(image, digits) else { continue };
        let Some(names) = find_names(image, &tokens, &mut steps) else {
            error = KallsymsError::NoNames(tokens.start);
            continue;
        };
        let tables = addresses(image, base, &tokens, &names)
            .filter_map(|(offsets, how)| Some((build(image, &tokens, &names, offsets, how)?, offsets)));
        match tables
            .into_iter()
            .find(|(table, _)| is_true(table, image, base) && at.is_none_or(|at| has_code(table, at)))
        {
            Some((symbols, offsets)) => {
                // The address that offsets are relative to is after the offsets or just before the
                // names.
                let after = (offsets + 4 * names.count as usize).next_multiple_of(8) + 8;
                return Ok(Kallsyms { symbols, place: offsets.min(names.count_at)..after.max(tokens.end) });
            }
            None => error = KallsymsError::NoAddresses(names.count),
        }
    }
    Err(error)
}

/// `digits` is the location of the token for the digit 0, which is always token 48. The tokens of
/// digits are the digits themselves.
fn find_tokens(image: &[u8], digits: usize) -> Option<Tokens<'_>> {
    let mut end = digits;
    for _ in b'0' as usize..256 {
        end += memchr::memchr(0, image.get(end..(end + MAX_NAME).min(image.len()))?)? + 1;
    }
    // The index follows at the next multiple of 8, or of 4 in old kernels. The padding is zeroes,
    // and index[0] is 0.
    [end.next_multiple_of(8), end.next_multiple_of(4)].into_iter().find_map(|index_at| {
        let index = |i: usize| {
            let b = image.get(index_at + 2 * i..index_at + 2 * i + 2)?;
            Some(u16::from_le_bytes([b[0], b[1]]) as usize)
        };
        let start = digits.checked_sub(index(b'0' as usize)?)?;
        let mut strings = Vec::with_capacity(256);
        for i in 0..256 {
            let at = index(i)?;
            // Each token starts where the previous one ends.
            if i > 0 && (at <= index(i - 1)? || image.get(start + at - 1) != Some(&0)) || i == 0 && at != 0 {
                return None;
            }
            let bytes = image.get(start + at..)?;
            strings.push(&bytes[..memchr::memchr(0, &bytes[..bytes.len().min(MAX_NAME)])?]);
        }
        Some(Tokens { strings, start, end: index_at + 512 })
    })
}

/// Length of the compressed name at `at`, and the start of its bytes. Two-byte lengths exist from
/// 6.1 on.
fn name_len(image: &[u8], at: usize) -> Option<(usize, usize)> {
    let low = *image.get(at)? as usize;
    if low & 0x80 == 0 {
        Some((low, at + 1))
    } else {
        Some(((low & 0x7f) | (*image.get(at + 1)? as usize) << 7, at + 2))
    }
}

fn find_names(image: &[u8], tokens: &Tokens, steps: &mut usize) -> Option<Names> {
    // The nearest candidate wins, because the parts between names and tokens are small.
    let lowest = tokens.start.saturating_sub(MAX_NAMES);
    let mut count_at = tokens.start.checked_sub(8)? & !3;
    while count_at > lowest && *steps > 0 {
        count_at -= 4;
        let Some(count) = u32_at(image, count_at).filter(|n| SYMBOLS.contains(n)) else { continue };
        for first in [count_at + 8, count_at + 4] {
            if first == count_at + 8 && u32_at(image, count_at + 4) != Some(0) {
                continue;
            }
            if names_fit(image, tokens, first, count, steps) {
                return Some(Names { count_at, count, first });
            }
        }
    }
    None
}

/// Whether `count` names from `first` on can be decoded and agree with the markers.
fn names_fit(image: &[u8], tokens: &Tokens, first: usize, count: u32, steps: &mut usize) -> bool {
    let mut at = first;
    let mut markers = Vec::new();
    for i in 0..count {
        if i % 256 == 0 {
            markers.push((at - first) as u32);
        }
        *steps = steps.saturating_sub(1);
        let Some((len, bytes)) = name_len(image, at) else { return false };
        let known_letter = image
            .get(bytes)
            .and_then(|&t| tokens.strings[t as usize].first())
            .is_some_and(|c| b"AaBbCcDdGgIiNnRrSsTtUuVvWw?".contains(c));
        at = bytes + len;
        if len == 0 || len > MAX_NAME || at > tokens.start || !known_letter {
            return false;
        }
    }
    [4, 8].into_iter().any(|align| {
        let table = at.next_multiple_of(align);
        markers.iter().enumerate().all(|(i, &m)| u32_at(image, table + 4 * i) == Some(m))
    })
}

/// All possible places of the offsets, and layouts of them, in which the text symbols ascend.
fn addresses<'a>(
    image: &'a [u8],
    base: u64,
    tokens: &'a Tokens,
    names: &'a Names,
) -> impl Iterator<Item = (usize, Base)> + 'a {
    let n = names.count as usize;
    let mut candidates = Vec::new();
    // Tables are aligned to 8 bytes, and to 4 from 7.x on (output_label, scripts/kallsyms.c).
    for after in [tokens.end.next_multiple_of(8), tokens.end.next_multiple_of(4)] {
        if let Some(b) = u64_at(image, (after + 4 * n).next_multiple_of(8)) {
            candidates.push((after, Base::AbsolutePercpu(b)));
            candidates.push((after, Base::Relative(b)));
        }
    }
    for after in [tokens.end.next_multiple_of(4), tokens.end.next_multiple_of(8)] {
        candidates.push((after, Base::OwnPlace(base.wrapping_add(after as u64))));
    }
    let before = (names.count_at & !7).wrapping_sub(8);
    if let (Some(b), Some(at)) = (u64_at(image, before), before.checked_sub((4 * n).next_multiple_of(8))) {
        candidates.push((at, Base::AbsolutePercpu(b)));
        candidates.push((at, Base::Relative(b)));
    }
    candidates.into_iter().filter(move |&(at, how)| text_is_in_order(image, base, tokens, names, at, how))
}

/// Whether the table gives the right address for the banner. If the table were off by one symbol,
/// text symbols would ascend as well.
fn is_true(table: &SymbolTable, image: &[u8], base: u64) -> bool {
    table.lookup("linux_banner").is_none_or(|at| {
        let at = at.wrapping_sub(base) as usize;
        image.get(at..).is_some_and(|b| b.starts_with(b"Linux version "))
    })
}

/// Whether a kernel with these symbols has code at `at`.
pub(crate) fn has_code(table: &SymbolTable, at: u64) -> bool {
    match (table.lookup("_text"), table.lookup("_end")) {
        (Some(start), Some(end)) => (start..end).contains(&at),
        _ => true,
    }
}

/// Whether nearly all text symbols are in the image, in ascending order.
fn text_is_in_order(image: &[u8], base: u64, tokens: &Tokens, names: &Names, offsets: usize, how: Base) -> bool {
    let (mut text, mut good, mut last, mut at) = (0u32, 0u32, 0u64, names.first);
    for i in 0..names.count as usize {
        let Some((len, bytes)) = name_len(image, at) else { return false };
        at = bytes + len;
        if !matches!(tokens.strings[image[bytes] as usize][0], b't' | b'T') {
            continue;
        }
        let Some(raw) = u32_at(image, offsets + 4 * i) else { return false };
        let addr = how.address(i, raw);
        text += 1;
        if addr >= last && addr.wrapping_sub(base) < image.len() as u64 {
            good += 1;
            last = addr;
        }
    }
    text > 100 && good >= text / 10 * 9
}

/// Builds the table. `None` if no kernel has such names.
fn build(image: &[u8], tokens: &Tokens, names: &Names, offsets: usize, how: Base) -> Option<SymbolTable> {
    let mut table = SymbolTableBuilder::with_capacity(names.count as usize);
    let mut name = Vec::with_capacity(MAX_NAME);
    let (mut at, mut left) = (names.first, MAX_TEXT);
    for i in 0..names.count as usize {
        let Some((len, bytes)) = name_len(image, at) else { break };
        at = bytes + len;
        name.clear();
        for &token in &image[bytes..at] {
            name.extend_from_slice(tokens.strings[token as usize]);
            if name.len() > MAX_NAME {
                return None;
            }
        }
        left = left.checked_sub(name.len())?;
        if let (Some((&kind, name)), Some(raw)) = (name.split_first(), u32_at(image, offsets + 4 * i))
            && let Ok(name) = std::str::from_utf8(name)
        {
            table.push(how.address(i, raw), kind, name);
        }
    }
    Some(table.build())
}

#[cfg(test)]
mod tests;
