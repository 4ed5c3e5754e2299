//! The cost of an allocation and its free: the live map and the stacks, used by several threads.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dashmap::DashMap;
use detector::objects::{AddressHasher, Kind, LiveMap, Object};
use detector::stacks::Stacks;
use std::hash::BuildHasherDefault;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Live objects throughout, about as many as in a booted guest.
const LIVE: u64 = 100_000;
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;

/// The time that `threads` threads need for `rounds` calls of `work` each. `work` gets the thread's
/// number and the round.
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

/// Enters and removes an object beside many that stay.
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
                    // Each CPU reuses the objects of its own slab.
                    let addr = DIRECT_MAP + (1 << 32) + thread * 0x1_0000 + round % 64 * 256;
                    map.insert(black_box(addr), object, 0, 0);
                    map.remove(black_box(addr));
                })
            });
        });
    }
    group.finish();
}

/// Records a call by the stack slot of its return address, and finds it when it returns.
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

/// Looks up a known stack. All but one in a few hundred stacks are known. A booted guest has about
/// 4,000.
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
                        // In an order that no cache can predict.
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
