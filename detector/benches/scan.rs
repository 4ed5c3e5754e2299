//! The speed of scanning memory, beside a plain sum of its words as the upper bound.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use detector::index::{Index, Span};
use detector::scan::{Contents, Marker, Options, Rules, Surroundings, Variant};
use std::hint::black_box;

const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Bytes of root memory. They exceed all caches.
const ROOTS: usize = 64 << 20;

/// A generator of the same numbers each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 16
    }
}

/// Blocks of slab sizes with gaps. They fill half of the memory.
fn spans(blocks: u32) -> Vec<Span> {
    let mut random = Random(1);
    let mut at = DIRECT_MAP;
    (0..blocks)
        .map(|block| {
            let size = 32 << (random.next() % 5);
            let start = at;
            at += size + random.next() % 8 * 64;
            Span { start, end: start + size, block }
        })
        .collect()
}

/// `__percpu` pointers as in a kernel before 6.15.
fn percpu() -> Vec<Span> {
    let span = |i: u32| Span { start: 0x3_b000 + 64 * u64::from(i), end: 0x3_b004 + 64 * u64::from(i), block: i };
    (0..400).map(span).collect()
}

/// Memory in which `percent` of the words point into objects. Most others are zero or small
/// numbers.
fn memory(spans: &[Span], percent: u64) -> Vec<u8> {
    let mut random = Random(2);
    let word = |_| {
        let x = random.next();
        match x % 100 {
            n if n < percent => {
                let span = spans[(x / 100) as usize % spans.len()];
                span.start + (x >> 7) % (span.end - span.start)
            }
            n if n < 60 => 0,
            _ => x & 0xffff_ffff,
        }
    };
    (0..ROOTS / 8).map(word).flat_map(u64::to_le_bytes).collect()
}

/// Blocks without contents, since only the reading of roots is measured.
struct Nothing;

impl Contents for Nothing {
    fn read(&self, _: u32, _: &mut dyn FnMut(u64, &[u8])) {}
}

impl Surroundings for Nothing {
    fn is_stale(&self, _: u64, _: u64) -> bool {
        false
    }
}

fn lookup(criterion: &mut Criterion) {
    for blocks in [100_000, 10_000_000] {
        let spans = spans(blocks);
        let index = Index::new(spans.iter().copied());
        let mut group = criterion.benchmark_group(format!("index of {blocks} spans"));
        group.sample_size(20).throughput(Throughput::Elements(1));
        let mut random = Random(3);
        let inside: Vec<u64> =
            (0..1 << 20).map(|_| spans[(random.next() % u64::from(blocks)) as usize].start + 8).collect();
        let mut at = 0;
        group.bench_function("an object is found", |bencher| {
            bencher.iter(|| {
                at = (at + 1) % inside.len();
                index.find(black_box(inside[at]))
            });
        });
        group.bench_function("no address", |bencher| bencher.iter(|| index.find(black_box(0x1234))));
        group.throughput(Throughput::Elements(blocks.into())).sample_size(10);
        group.bench_function("built", |bencher| bencher.iter(|| Index::new(spans.iter().copied())));
        group.finish();
    }
}

fn roots(criterion: &mut Criterion) {
    for blocks in [100_000, 10_000_000] {
        let spans = spans(blocks);
        let (index, pointers) = (Index::new(spans.iter().copied()), Index::new(percpu()));
        let rules = Rules::new(blocks as usize);
        for percent in [1, 5, 20] {
            let memory = memory(&spans, percent);
            let mut group = criterion.benchmark_group(format!("scan for {blocks} objects, {percent} % pointers"));
            group.throughput(Throughput::Bytes(ROOTS as u64)).sample_size(10);
            for variant in [Variant::Naive, Variant::Generic, Variant::Avx2] {
                group.bench_function(BenchmarkId::from_parameter(format!("{variant:?}")), |bencher| {
                    let options = Options { variant, ..Options::default() };
                    let mut marker = Marker::new(&index, &pointers, &rules, &Nothing, options);
                    bencher.iter(|| marker.root(0, black_box(&memory)));
                    marker.finish(&Nothing);
                });
            }
            group.bench_function("plain read", |bencher| {
                let sum =
                    |words: &[[u8; 8]]| words.iter().fold(0u64, |sum, w| sum.wrapping_add(u64::from_le_bytes(*w)));
                bencher.iter(|| sum(black_box(memory.as_chunks::<8>().0)));
            });
            group.finish();
        }
    }
}

criterion_group!(benches, lookup, roots);
criterion_main!(benches);
