//! Live objects as records of 90 bytes: u64 address; u8 kind, in the order of [`Kind`]; u8 with bit 0 for dying and
//! bit 1 for reported; u64 size, allocator, caller, sequence number, jiffies and milliseconds; u32 pid, process's pid, CPU and number of the stack; 16 bytes comm.

use crate::fields::{Flaw, Sink, Source};
use detector::objects::{Kind, Object, Site};
use detector::stacks::StackId;
use std::io::{self, Read, Write};

/// Bytes of a record.
const RECORD: usize = 90;
/// More objects than this are not believed: as many as the detector can number.
const MAX_OBJECTS: u64 = u32::MAX as u64 - 1;
/// Nor is a larger one, in bytes.
const MAX_SIZE: u64 = 1 << 40;

const KINDS: [Kind; 5] = [Kind::Slab, Kind::Large, Kind::Vmalloc, Kind::Percpu, Kind::Pages];

fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Slab => 0,
        Kind::Large => 1,
        Kind::Vmalloc => 2,
        Kind::Percpu => 3,
        Kind::Pages => 4,
    }
}

pub(crate) fn put(to: &mut Sink<impl Write>, objects: &[(u64, Object)]) -> io::Result<()> {
    to.u64(objects.len() as u64)?;
    for (addr, object) in objects {
        // All fields by name, so that a new one cannot be forgotten.
        let Object { kind, dying, reported, size, site, stack, sequence, jiffies, millis, pid, tgid, cpu, comm } =
            object;
        let words = [*size, site.allocator, site.caller, *sequence, *jiffies, *millis];
        let mut record = [0; RECORD];
        record[..8].copy_from_slice(&addr.to_le_bytes());
        record[8] = code(*kind);
        record[9] = u8::from(*dying) | u8::from(*reported) << 1;
        for (to, word) in record[10..58].as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        for (to, number) in record[58..74].as_chunks_mut::<4>().0.iter_mut().zip([*pid, *tgid, *cpu, stack.0]) {
            *to = number.to_le_bytes();
        }
        record[74..].copy_from_slice(comm);
        to.0.write_all(&record)?;
    }
    Ok(())
}

pub(crate) fn take(from: &mut Source<impl Read>) -> Result<Vec<(u64, Object)>, Flaw> {
    let count = from.u64()?;
    if count > MAX_OBJECTS {
        return from.flaw(format!("{count} objects are more than there may be"));
    }
    let mut objects: Vec<(u64, Object)> = Vec::with_capacity(count.min(1 << 16) as usize);
    for _ in 0..count {
        let record: [u8; RECORD] = from.array()?;
        let mut word = [0; 8];
        word.copy_from_slice(&record[..8]);
        let addr = u64::from_le_bytes(word);
        let Some(&kind) = KINDS.get(usize::from(record[8])) else {
            return from.flaw(format!("an object of unknown kind {}", record[8]));
        };
        if record[9] > 3 {
            return from.flaw(format!("an object with unknown flags {:#x}", record[9]));
        }
        let mut words = [0; 6];
        for (word, bytes) in words.iter_mut().zip(record[10..58].as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let [size, allocator, caller, sequence, jiffies, millis] = words;
        if size > MAX_SIZE {
            return from.flaw(format!("an object of {size} bytes"));
        }
        // The check relies on it. Two may have one address: pages, and the slab object at their start.
        if objects.last().is_some_and(|(last, _)| *last > addr) {
            return from.flaw(format!("the object at {addr:#x} comes after a higher one"));
        }
        let mut comm = [0; 16];
        let mut numbers = [0; 4];
        for (number, bytes) in numbers.iter_mut().zip(record[58..74].as_chunks::<4>().0) {
            *number = u32::from_le_bytes(*bytes);
        }
        let [pid, tgid, cpu, stack] = numbers;
        comm.copy_from_slice(&record[74..]);
        let object = Object {
            kind,
            dying: record[9] & 1 != 0,
            reported: record[9] & 2 != 0,
            size,
            site: Site { allocator, caller },
            sequence,
            jiffies,
            millis,
            stack: StackId(stack),
            pid,
            tgid,
            cpu,
            comm,
        };
        objects.push((addr, object));
    }
    Ok(objects)
}
