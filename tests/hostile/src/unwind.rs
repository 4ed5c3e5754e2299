//! Unwinding tables, and walks over stacks, both from the guest.

use crate::input::Input;
use guest_symbols::memory::{OwnedMemory, PhysAddr};
use guest_symbols::symbols::SymbolTableBuilder;
use guest_symbols::unwind::cache::Cache;
use guest_symbols::unwind::frames::{Registers, frames};
use guest_symbols::unwind::memo::{Log, Memo, Start};
use guest_symbols::unwind::orc::{Orc, Table};
use guest_symbols::unwind::step::{Bp, State, has_frame_pointers};
use guest_symbols::unwind::walk::{Context, Method, walk, walk_on};

/// The address of the image, and of the tables in it.
const BASE: u64 = 0xffff_ffff_8100_0000;
const IPS: u64 = 0x1_0000;
const ENTRIES: u64 = 0x1_8000;
const IMAGE: usize = 0x2_4000;
/// Entries as in a kernel, so that the table is accepted, and most entries.
const GOOD: usize = 64;
const MAX_ENTRIES: usize = 0x2000;
/// The address of the stack.
const STACK: u64 = 0xffff_c900_0000_4000;

struct Stack<'a> {
    orc: &'a Orc,
    table: &'a Table,
    words: &'a [u64],
    pointers: bool,
    log: Option<Log>,
    cache: Cache,
}

impl Context for Stack<'_> {
    fn read(&mut self, at: u64) -> Option<u64> {
        let found = self.words.get((at.checked_sub(STACK)? / 8) as usize).copied();
        if let (Some(log), Some(word)) = (&mut self.log, found) {
            log.note(at, word);
        }
        found
    }

    fn method(&mut self, at: u64) -> Method {
        let Stack { orc, table, pointers, cache, .. } = self;
        cache.get(at, 1, || match orc.lookup(at).or_else(|| orc.lookup_in(table, at)) {
            Some(rule) => Method::Rule(rule),
            None if *pointers => Method::FramePointer,
            None => Method::Unknown,
        })
    }

    fn is_text(&self, at: u64) -> bool {
        (BASE..BASE + IPS).contains(&at)
    }

    fn original(&mut self, ip: u64, slot: u64) -> u64 {
        if slot.is_multiple_of(64) { ip ^ 8 } else { ip }
    }
}

/// A byte of flags, three registers, the number of entries, the entries, and the words of the
/// stack. An entry is the distance to the next address and six bytes.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.u8();
    let registers =
        Registers { ip: BASE + u64::from(input.u16()), sp: STACK + u64::from(input.u16()), bp: input.u64() };
    let count = usize::from(input.u16()) % (MAX_ENTRIES - GOOD);
    // The first entries are those of real functions. Then come those of the input.
    let sp = if flags & 1 == 0 { 5 } else { 3 };
    let mut entries: Vec<(u64, [u8; 6])> = (0..GOOD as u64).map(|i| (BASE + 16 * i, [8, 0, 0, 0, sp, 2])).collect();
    let mut at = BASE + 16 * GOOD as u64;
    for _ in 0..count {
        if input.is_empty() {
            break;
        }
        // Some entries are out of order.
        at = at.wrapping_add_signed(i64::from(input.u16() as i16) + 0x1000);
        entries.push((at, input.bytes(6).try_into().unwrap_or([0; 6])));
    }
    let words: Vec<u64> = std::iter::from_fn(|| (!input.is_empty()).then(|| input.u64())).take(4096).collect();
    let ips: Vec<u8> = entries
        .iter()
        .enumerate()
        .flat_map(|(i, (at, _))| (at.wrapping_sub(BASE + IPS + 4 * i as u64) as i32).to_le_bytes())
        .collect();
    let bytes: Vec<u8> = entries.iter().flat_map(|(_, e)| *e).collect();
    let mut memory = OwnedMemory::zeroed(0, IMAGE);
    memory.write(IPS, &ips);
    memory.write(ENTRIES, &bytes);
    let mut symbols = SymbolTableBuilder::default();
    for (name, at) in [
        ("__start_orc_unwind_ip", IPS),
        ("__stop_orc_unwind_ip", IPS + ips.len() as u64),
        ("__start_orc_unwind", ENTRIES),
        ("__stop_orc_unwind", ENTRIES + bytes.len() as u64),
    ] {
        symbols.push(BASE + at, b'r', name);
    }
    for (i, (at, _)) in entries.iter().enumerate() {
        (0..16).for_each(|_| symbols.push(*at, b't', &format!("f{i}")));
    }
    let symbols = symbols.build();
    let starts = symbols.iter().map(|s| s.addr.wrapping_sub(BASE) as usize);
    let _ = has_frame_pointers(&bytes, starts);
    let orc = Orc::read(&memory, &symbols, None, |at| PhysAddr(at.0.wrapping_sub(BASE)));
    let table = Table::new(BASE + IPS, &ips, &bytes);
    let (Some(orc), Some(table)) = (orc, table) else { return };
    assert_eq!(orc.len(), entries.len());
    look_up(&orc, &entries);
    walks(&orc, &table, registers, &words, flags);
}

fn look_up(orc: &Orc, entries: &[(u64, [u8; 6])]) {
    for at in [BASE, BASE + 5, BASE + 0x2000, BASE + IPS, 0, u64::MAX] {
        assert_eq!(orc.lookup(at).is_some(), entries.iter().any(|(from, _)| *from <= at), "{at:#x}");
    }
    let range = BASE + 0x100..BASE + 0x4000;
    let changes: Vec<u64> = orc.changes(range.clone()).map(|(at, _)| at).collect();
    assert!(changes.is_sorted() && changes.len() == entries.iter().filter(|(at, _)| range.contains(at)).count());
}

fn walks(orc: &Orc, table: &Table, from: Registers, words: &[u64], flags: u8) {
    let read = |at: u64| words.get((at.checked_sub(STACK)? / 8) as usize).copied();
    let found = frames(|at| orc.lookup(at), from, read);
    assert!(found.len() <= 512, "{} frames", found.len());
    assert!(found.iter().rev().skip(1).rev().is_sorted_by(|a, b| a.cfa <= b.cfa), "a frame lies below its callee's");
    let state = State::returned(from.ip, from.sp, if flags & 2 == 0 { Bp::Is(from.bp) } else { Bp::SavedAt(from.bp) });
    let stack = |log| Stack { orc, table, words, pointers: flags & 4 != 0, log, cache: Cache::default() };
    let mut out = [0; 64];
    let n = walk(&mut stack(None), state, &mut out);
    assert!(n <= out.len() && out[..n].iter().all(|at| (BASE..BASE + IPS).contains(at)), "{n} frames: {out:x?}");
    let mut small = [0; 3];
    let few = walk(&mut stack(None), state, &mut small);
    assert_eq!(few, n.min(small.len()));
    assert_eq!(small[..few], out[..few]);
    // A logged walk gives the same frames, and the memo returns the same result for it.
    let mut logged = stack(Some(Log::new(from.sp)));
    let mut part = [0; 64];
    let walked = walk_on(&mut logged, state, &mut part);
    assert_eq!(part[..walked.frames], out[..walked.frames]);
    let mut memo = Memo::default();
    let start = Start { function: BASE, ret: from.ip, sp: from.sp };
    let log = logged.log.take().expect("it was given");
    memo.keep(start, log, walked.frames);
    assert!(memo.find(start, 0, read).is_none_or(|known| known.result == walked.frames));
}
