use super::*;
use std::cell::Cell;

/// An instruction at address `ip`, with a stack of that number.
struct At(u32);

impl Event for At {
    fn ip(&self) -> u32 {
        self.0
    }
    fn time(&self) -> u32 {
        self.0 * 10
    }
    fn stack(&self) -> StackId {
        StackId(self.0)
    }
}

fn table(len: usize) -> Vec<AtomicU32> {
    (0..len).map(|_| AtomicU32::new(0)).collect()
}

fn references(places: usize) -> References<Vec<AtomicU32>> {
    References::new(table(4096), table(4096), table(places * RECORD))
}

impl References<Vec<AtomicU32>> {
    /// The address of word `to` was stored to `word`.
    fn put(&self, word: usize, to: usize, ip: u32) {
        self.store(word, || self.object(to), &At(ip));
    }
}

#[test]
fn the_last_reference_and_its_end() {
    let r = references(16);
    r.begin(100, 4, &At(1));
    assert_eq!(r.trace(102).unwrap().reference, None);
    r.put(10, 101, 2);
    r.put(11, 103, 3);
    r.put(10, 0, 4);
    let trace = r.trace(100).unwrap();
    assert_eq!((trace.count, trace.reference, trace.remains), (1, Some((11, 3)), true));
    let lost = Lost { word: 10, ip: 4, time: 40, ending: Ending::Overwritten, stack: StackId::NONE };
    assert_eq!(trace.lost, Some(lost));
    r.put(11, 0, 5);
    let trace = r.trace(100).unwrap();
    assert_eq!((trace.count, trace.remains), (0, false));
    assert_eq!(trace.lost, Some(Lost { word: 11, ip: 5, time: 50, stack: StackId(5), ..lost }));
    // The same word refers to it again, and twice.
    r.put(11, 100, 6);
    r.put(11, 100, 7);
    assert_eq!((r.trace(100).unwrap().count, r.trace(100).unwrap().reference), (1, Some((11, 7))));
}

#[test]
fn a_freed_holder_refers_to_nothing() {
    let r = references(16);
    r.begin(100, 4, &At(1));
    r.begin(200, 8, &At(2));
    r.put(207, 100, 3);
    r.put(208, 100, 4);
    r.end(200, &At(5));
    let lost = Lost { word: 207, ip: 5, time: 50, ending: Ending::Freed, stack: StackId::NONE };
    assert_eq!((r.trace(100).unwrap().count, r.trace(100).unwrap().lost), (1, Some(lost)));
    assert_eq!((r.object(200), r.trace(200)), (Id::NONE, None));
    r.begin(208, 1, &At(6));
    let lost = Lost { word: 208, ip: 6, time: 60, ending: Ending::Reused, stack: StackId(6) };
    assert_eq!((r.trace(100).unwrap().count, r.trace(100).unwrap().lost), (0, Some(lost)));
    // What was freed without a word is gone when its memory is allocated again.
    let old = r.object(100);
    r.begin(102, 2, &At(7));
    assert!(r.record(old).is_none() && r.trace(102).is_some());
}

#[test]
fn an_object_does_not_hold_itself() {
    let r = references(16);
    r.begin(100, 4, &At(1));
    r.put(101, 102, 2);
    assert_eq!((r.trace(100).unwrap().count, r.target(101)), (0, Id::NONE));
}

#[test]
fn the_outermost_frame_is_kept() {
    let r = references(16);
    r.begin(100, 4, &At(1));
    let id = r.object(100);
    for (depth, ip) in [(5, 2), (9, 3), (7, 4)] {
        r.hold(id, depth, &At(ip));
    }
    assert_eq!(r.trace(100).unwrap().held, StackId(3));
    r.put(10, 100, 5);
    r.hold(id, 20, &At(6));
    assert_eq!(r.trace(100).unwrap().held, StackId(3), "it has another reference");
    r.put(10, 0, 7);
    assert_eq!(r.trace(100).unwrap().held, StackId::NONE);
    r.hold(id, 6, &At(8));
    assert_eq!(r.trace(100).unwrap().held, StackId(8));
    assert_eq!(r.record(id).unwrap().len(), 4);
    r.hold(id, u32::MAX, &At(9));
    assert_eq!((r.record(id).unwrap().len(), r.trace(100).unwrap().held), (4, StackId(9)));
}

#[test]
fn a_cell_is_true_after_a_race() {
    let r = references(16);
    r.begin(100, 4, &At(1));
    r.begin(200, 4, &At(2));
    // Another CPU stores the address of the second object after this one has read the first.
    let reads = Cell::new(0);
    let read = || {
        reads.set(reads.get() + 1);
        r.object(if reads.get() == 1 { 100 } else { 200 })
    };
    r.store(10, read, &At(3));
    assert_eq!((r.target(10), reads.get()), (r.object(200), 3));
    assert_eq!((r.trace(100).unwrap().count, r.trace(200).unwrap().count), (0, 1));
}

#[test]
fn an_old_reference_is_none_to_the_next_object() {
    let r = references(1);
    r.begin(100, 4, &At(1));
    let first = r.object(100);
    r.put(10, 100, 2);
    r.end(100, &At(3));
    r.begin(100, 4, &At(4));
    assert!(r.object(100) != first && r.object(100).place() == first.place());
    r.put(10, 0, 5);
    let trace = r.trace(100).unwrap();
    assert_eq!((trace.count, trace.lost), (0, None));
}

/// Objects that stay fill whole runs of places. There is always room for the next one.
#[test]
fn long_lived_objects_leave_room() {
    const OBJECTS: usize = if cfg!(miri) { 500 } else { 150_000 };
    let r = References::new(table(OBJECTS + 1), table(OBJECTS + 1), table(4 * OBJECTS * RECORD));
    for at in 0..OBJECTS {
        r.begin(at, 1, &At(1));
        r.begin(OBJECTS, 1, &At(1));
    }
    assert_eq!(r.unrecorded(), 0);
}

#[test]
fn without_room_there_is_no_history() {
    let r = references(3);
    (0..4).for_each(|i| r.begin(100 + 4 * i, 4, &At(1)));
    assert_eq!((r.unrecorded(), r.object(112)), (1, Id::NONE));
    r.put(10, 112, 2);
    r.end(112, &At(3));
    r.end(100, &At(4));
    r.begin(112, 4, &At(5));
    assert!(r.object(112).is_object());
    // Words outside of the tables are no words.
    r.begin(4094, 8, &At(6));
    r.put(5000, 100, 7);
    r.end(4094, &At(8));
    assert!(r.bytes() > 0 && r.trace(9999).is_none());
}

#[test]
fn counts_are_right_when_threads_race() {
    const ROUNDS: usize = if cfg!(miri) { 50 } else { 20_000 };
    let r = references(64);
    let word = AtomicU32::new(0);
    r.begin(100, 4, &At(1));
    r.begin(200, 4, &At(2));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (r, word) = (&r, &word);
            scope.spawn(move || {
                for i in 0..ROUNDS {
                    let to = [0, 100, 200][(i + thread) % 3];
                    word.store(to, Ordering::SeqCst);
                    r.store(10, || r.object(word.load(Ordering::SeqCst) as usize), &At(3));
                }
            });
        }
    });
    let now = word.load(Ordering::SeqCst) as usize;
    assert_eq!(r.target(10), r.object(now));
    for at in [100, 200] {
        assert_eq!(r.trace(at).unwrap().count, u32::from(at == now), "{at}");
    }
}
