//! What an allocation and its free cost: the live map and the stacks, which every vCPU's thread uses at once.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dashmap::DashMap;
use detector::objects::{AddressHasher, Kind, LiveMap, Object};
use detector::stacks::Stacks;
use std::hash::BuildHasherDefault;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Objects that are live all along, as in a booted guest.
const LIVE: u64 = 100_000;
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;

/// The time that `threads` threads take to do `work` side by side, with their numbers, `rounds` times each.
fn side_by_side(threads: u64, rounds: u64, work: impl Fn(u64, u64) + Sync) -> Duration {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let work = &work;
            scope.spawn(move || (0..rounds).for_each(|round| work(thread, round)));
        }
    });
    began.elapsed()
}

/// An object is entered and removed again, beside many that stay.
fn live_map(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("live map, insert and remove");
    let map = LiveMap::with_capacity(LIVE as usize);
    let object = Object::unseen(Kind::Slab);
    for i in 0..LIVE {
        map.insert(DIRECT_MAP + i * 256, object, 0, 0);
    }
    for threads in [1, 2, 4] {
        group.throughput(Throughput::Elements(threads));
        group.bench_function(BenchmarkId::new("threads", threads), |bencher| {
            bencher.iter_custom(|rounds| {
                side_by_side(threads, rounds, |thread, round| {
                    // Each CPU takes its objects from a slab of its own, and the same ones again.
                    let addr = DIRECT_MAP + (1 << 32) + thread * 0x1_0000 + round % 64 * 256;
                    map.insert(black_box(addr), object, 0, 0);
                    map.remove(black_box(addr));
                })
            });
        });
    }
    group.finish();
}

/// A call in progress is kept by the stack slot of its return address, and found again when it returns, beside some that sleep.
fn return_match(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("call entered and its return matched");
    let pending: DashMap<u64, [u64; 5], BuildHasherDefault<AddressHasher>> = DashMap::default();
    for i in 0..64 {
        pending.insert(0xffff_c900_0000_0000 + (i << 14), [i; 5]);
    }
    for threads in [1, 2, 4] {
        group.throughput(Throughput::Elements(threads));
        group.bench_function(BenchmarkId::new("threads", threads), |bencher| {
            bencher.iter_custom(|rounds| {
                side_by_side(threads, rounds, |thread, round| {
                    let slot = 0xffff_c900_1000_0000 + (thread << 14) + round % 16 * 8;
                    pending.insert(black_box(slot), [round; 5]);
                    black_box(pending.remove_if(&black_box(slot), |_, call| call[0] == round));
                })
            });
        });
    }
    group.finish();
}

/// A stack that is known, which all but one in some hundred are: a booted guest has some 4,000.
fn known_stacks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stacks, intern a known one");
    for frames in [2, 16] {
        let stacks = Stacks::default();
        let all: Vec<Vec<u64>> = (0..4096u64)
            .map(|i| (0..frames).map(|f| 0xffff_ffff_8100_0000 + i * 0x40 + f * 0x1_0000).collect())
            .collect();
        all.iter().for_each(|frames| _ = stacks.intern(frames));
        for threads in [1, 2, 4] {
            group.throughput(Throughput::Elements(threads));
            group.bench_function(BenchmarkId::new(format!("{frames} frames, threads"), threads), |bencher| {
                bencher.iter_custom(|rounds| {
                    side_by_side(threads, rounds, |thread, round| {
                        // All over them; which one comes next is nothing a cache can guess.
                        let at = round.wrapping_add(thread).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
                        black_box(stacks.intern(&all[at as usize]));
                    })
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, live_map, return_match, known_stacks);
criterion_main!(benches);
