//! Live objects, task names, clock readings and sizes. In the order of the file:
//!
//! | table | count | entry |
//! |---|---|---|
//! | task names | u32 | 16 bytes |
//! | clock readings, ascending | u32 | u64 jiffies, u64 milliseconds |
//! | sizes of objects outside of slabs | u64 | u64 address, u8 kind, u64 bytes |
//! | objects, ascending by address | u64 | u64 address, three u64 as in the live map ([`Object`]) |

use crate::fields::{Flaw, Sink, Source};
use detector::clock::Reading;
use detector::frozen::{Objects, Size};
use detector::objects::{Kind, Object};
use std::io::{self, Read, Write};

/// Most objects: as many as the detector can number.
const MAX_OBJECTS: u64 = u32::MAX as u64 - 1;
/// Most bytes of an object.
const MAX_SIZE: u64 = 1 << 40;
/// Most task names, and most clock readings.
const MAX_TABLE: u32 = 1 << 24;
/// Most entries for which memory is reserved before they are read.
const ROOM: u64 = 1 << 16;

const KINDS: [Kind; 5] = [Kind::Slab, Kind::Large, Kind::Vmalloc, Kind::Percpu, Kind::Pages];

pub(crate) fn put(to: &mut Sink<impl Write>, objects: &Objects) -> io::Result<()> {
    let (sizes, comms, readings) = (objects.sizes(), objects.comms(), objects.readings());
    to.count(comms.len())?;
    for comm in comms {
        to.0.write_all(comm)?;
    }
    to.count(readings.len())?;
    for reading in readings {
        to.u64(reading.jiffies)?;
        to.u64(reading.millis)?;
    }
    to.u64(sizes.len() as u64)?;
    for size in sizes {
        to.u64(size.addr)?;
        to.u8(size.kind as u8)?;
        to.u64(size.bytes)?;
    }
    to.u64(objects.list().len() as u64)?;
    for (addr, object) in objects.list() {
        let [a, b, c] = object.to_words();
        let mut record = [0; 32];
        for (to, word) in record.as_chunks_mut::<8>().0.iter_mut().zip([*addr, a, b, c]) {
            *to = word.to_le_bytes();
        }
        to.0.write_all(&record)?;
    }
    Ok(())
}

fn many(from: &mut Source<impl Read>, what: &str) -> Result<u64, Flaw> {
    match from.u64()? {
        count if count > MAX_OBJECTS => from.flaw(format!("{count} {what} exceed the limit")),
        count => Ok(count),
    }
}

pub(crate) fn take(from: &mut Source<impl Read>) -> Result<Objects, Flaw> {
    let count = from.count(MAX_TABLE)?;
    let comms = (0..count).map(|_| from.array()).collect::<Result<Vec<[u8; 16]>, Flaw>>()?;
    let count = from.count(MAX_TABLE)?;
    let readings = (0..count)
        .map(|_| Ok(Reading { jiffies: from.u64()?, millis: from.u64()? }))
        .collect::<Result<Vec<_>, Flaw>>()?;
    if !readings.is_sorted() {
        return from.flaw("a clock that goes back");
    }
    let count = many(from, "sizes")?;
    let mut sizes = Vec::with_capacity(count.min(ROOM) as usize);
    for _ in 0..count {
        let (addr, [kind], size) = (from.u64()?, from.array()?, from.u64()?);
        let Some(&kind) = KINDS.get(usize::from(kind)) else {
            return from.flaw(format!("an object of unknown kind {kind}"));
        };
        if size > MAX_SIZE {
            return from.flaw(format!("an object of {size} bytes"));
        }
        sizes.push(Size { addr, kind, bytes: size });
    }
    let count = many(from, "objects")?;
    let mut list: Vec<(u64, Object)> = Vec::with_capacity(count.min(ROOM) as usize);
    for _ in 0..count {
        let record: [u8; 32] = from.array()?;
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(record.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let [addr, a, b, c] = words;
        let Some(object) = Object::from_words([a, b, c]) else {
            return from.flaw(format!("an object of unknown kind or flags {a:#x}"));
        };
        // The check relies on this order. Pages and the slab object at their start have equal
        // addresses.
        if list.last().is_some_and(|(last, _)| *last > addr) {
            return from.flaw(format!("the object at {addr:#x} comes after a higher one"));
        }
        list.push((addr, object));
    }
    Ok(Objects::from_parts(list, sizes, comms, readings))
}
