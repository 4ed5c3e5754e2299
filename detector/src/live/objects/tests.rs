//! The live map under single events, under threads, and at its bound.

use super::*;
use crate::live::comms::CommId;
use crate::live::stacks::StackId;
use std::sync::atomic::{AtomicU64, Ordering};

fn object(sequence: u64) -> Object {
    let (kind, stack, comm) = (Kind::Slab, StackId(7), CommId(1));
    Allocation { kind, stack, sequence, jiffies: 0, pid: 0, tgid: 0, cpu: 0, comm }.into()
}

#[test]
fn an_inner_allocator_stays_and_a_missed_free_replaces() {
    let map = LiveMap::with_capacity(4);
    assert_eq!(map.insert(0x1000, object(5), 0, 4), Inserted::New);
    // The outer function was entered when the next number was 5, which the inner object then got.
    assert!(map.is_inside(0x1000, 5) && !map.is_inside(0x1000, 6) && !map.is_inside(0x2000, 0));
    assert_eq!(map.insert(0x1000, object(6), 0, 5), Inserted::Inside);
    assert_eq!(map.get(0x1000).unwrap().sequence(), 5);
    assert_eq!(map.insert(0x1000, object(9), 0, 8), Inserted::Replaced);
    let c = map.counters();
    assert_eq!((c.allocations, c.missed_frees), (2, 1));
}

#[test]
fn what_a_cache_kept_is_of_who_takes_it() {
    let map = LiveMap::with_capacity(4);
    map.insert(0x1000, object(5), 0, 5);
    map.set_reported(0x1000);
    // An object that was allocated during the call did not come from a cache.
    assert_eq!((map.kept_since(0x1000, 5), map.kept_since(0x2000, 9)), (None, None));
    assert_eq!(map.kept_since(0x1000, 9), Some(Kind::Slab));
    map.take(0x1000, object(9), 5);
    assert_eq!(map.get(0x1000).unwrap().sequence(), 5);
    map.take(0x1000, object(9), 9);
    map.take(0x2000, object(10), 9);
    let taken = map.get(0x1000).unwrap();
    assert_eq!((taken.sequence(), taken.is_reported(), map.len()), (9, false, 1));
    // It counts as one allocation and has one free.
    assert_eq!(map.retire(0x1000), Removed::Object);
    assert_eq!(map.kept_since(0x1000, 20), None);
    map.take(0x1000, object(20), 20);
    assert_eq!((map.get(0x1000).unwrap().sequence(), map.remove(0x1000)), (9, Removed::Dying));
    let c = map.counters();
    assert_eq!((c.allocations, c.frees, c.unknown_frees, c.missed_frees), (1, 1, 0, 0));
}

#[test]
fn what_is_full_forgets_nothing() {
    let map = LiveMap::with_capacity(4).with_most(3);
    for at in 1..=5 {
        map.insert(0x1000 * at, object(at), 0, at);
    }
    assert!(map.len() == 5 && !map.was_full());
    map.look_for_room();
    assert_eq!(map.insert(0x6000, object(6), 0, 6), Inserted::NoRoom);
    // An object that is already in the map is replaced.
    assert_eq!(map.insert(0x5000, object(7), 0, 7), Inserted::Replaced);
    assert_eq!((map.remove(0x6000), map.remove(0x5000)), (Removed::Unknown, Removed::Object));
    assert!((1..=2).all(|at| map.remove(0x1000 * at) == Removed::Object));
    map.look_for_room();
    assert_eq!(map.insert(0x6000, object(8), 0, 8), Inserted::New);
    assert!(map.was_full() && map.len() == 3);
    let map = LiveMap::with_capacity(4);
    map.look_for_room();
    assert_eq!(map.insert(0x1000, object(1), 0, 1), Inserted::New);
}

#[test]
fn kfree_rcu_frees_once() {
    let map = LiveMap::with_capacity(4);
    map.insert(0x1000, object(1), 0, 0);
    assert_eq!(map.retire(0x1000), Removed::Object);
    assert!(map.get(0x1000).is_some_and(|o| o.is_rcu_pending()));
    assert_eq!(map.remove(0x1000), Removed::Dying);
    assert_eq!(map.remove(0x1000), Removed::Unknown);
    // If the later free is not seen, the address is simply used again.
    map.insert(0x2000, object(2), 0, 1);
    map.retire(0x2000);
    assert_eq!(map.insert(0x2000, object(3), 0, 2), Inserted::New);
    assert_eq!(map.counters().frees, 2);
    map.forgive_unknown_free();
    assert_eq!(map.counters().unknown_frees, 0);
}

/// Four threads use addresses of their own and shared ones while another thread reads.
#[test]
fn threads_do_not_disturb_each_other() {
    const ROUNDS: u64 = if cfg!(miri) { 40 } else { 20_000 };
    let map = LiveMap::with_capacity(4);
    let (next, running) = (AtomicU64::new(1), AtomicU64::new(4));
    let work = |thread: u64| {
        let (mut entered, mut freed, mut replaced) = (0, 0, 0);
        for round in 0..ROUNDS {
            let own = (1 << 20) + 0x1000 * thread + 16 * (round % 7);
            let insert = |addr| {
                let since = next.fetch_add(1, Ordering::Relaxed);
                map.insert(addr, object(since), 0, since)
            };
            assert_eq!(insert(own), Inserted::New);
            if round % 3 == 0 {
                assert_eq!((map.retire(own), map.remove(own)), (Removed::Object, Removed::Dying));
            } else {
                assert_eq!(map.remove(own), Removed::Object);
            }
            // Another thread may have freed or replaced the shared object.
            let shared = 16 * (1 + round % 5);
            match insert(shared) {
                Inserted::New => entered += 1,
                Inserted::Replaced => (entered, replaced) = (entered + 1, replaced + 1),
                Inserted::Inside | Inserted::NoRoom => {}
            }
            let end = if round % 4 == 0 { map.retire(shared) } else { map.remove(shared) };
            freed += u64::from(end == Removed::Object);
        }
        running.fetch_sub(1, Ordering::Relaxed);
        (entered + ROUNDS, freed + ROUNDS, replaced)
    };
    let (entered, freed, replaced) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || work(thread))).collect();
        while running.load(Ordering::Relaxed) > 0 {
            let (mut list, mut sizes) = (Vec::new(), Sizes::new());
            map.copy_to(&mut list, &mut sizes);
            assert!(list.len() <= 4 + 5 + 4 && sizes.is_empty(), "{list:x?}");
            std::thread::yield_now();
        }
        let each = threads.into_iter().map(|t| t.join().unwrap());
        each.fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2))
    });
    let counters = map.counters();
    assert_eq!((counters.allocations, counters.frees, counters.missed_frees), (entered, freed, replaced));
    let (mut list, mut sizes) = (Vec::new(), Sizes::new());
    map.copy_to(&mut list, &mut sizes);
    let live = list.iter().filter(|(_, object)| !object.is_rcu_pending()).count() as u64;
    assert_eq!(live + freed + replaced, entered, "{list:x?}");
}

#[test]
fn that_tables_grow_is_known_before() {
    let map = LiveMap::with_capacity(1 << 12);
    let mut grew = 0;
    let (mut before, mut capacity) = (map.room(), map.map.capacity());
    for n in 1..1u64 << 18 {
        map.insert(n << 12, object(n), 0, n);
        if map.map.capacity() > capacity {
            assert_eq!(before.entries, 0, "{n}");
            grew += 1;
        }
        (before, capacity) = (map.room(), map.map.capacity());
    }
    assert!(grew > 5 && before.bytes > 1 << 18 << 5);
    map.release();
    assert!(map.is_empty() && map.map.capacity() == 0);
}

#[test]
fn what_is_displaced_is_not_known() {
    let map = LiveMap::with_capacity(4);
    map.insert(0x1000, object(5), 0, 4);
    map.displace(0x1000, 5);
    assert!(map.get(0x1000).is_some(), "the same call");
    map.displace(0x1000, 6);
    assert!(map.is_empty());
    map.insert(0x1000, object(7), 0, 6);
    map.retire(0x1000);
    map.displace(0x1000, 7);
    assert!(map.is_empty());
}
