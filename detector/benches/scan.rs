//! How fast memory is scanned for references to a hundred thousand objects: all of the time that a guest stands still,
//! but for some milliseconds, is spent there.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use detector::index::{Index, Span};
use detector::scan::{Contents, Marker, Rule, Surroundings};
use std::hint::black_box;

const BLOCKS: u64 = 100_000;
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Bytes of root memory that are read.
const ROOTS: usize = 16 << 20;

/// The same numbers each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 16
    }
}

/// Blocks of sizes as slabs have them, with gaps between: some 25 MiB of objects in 50 MiB.
fn spans() -> Vec<Span> {
    let mut random = Random(1);
    let mut at = DIRECT_MAP;
    (0..BLOCKS as u32)
        .map(|block| {
            let size = 32 << (random.next() % 5);
            let start = at;
            at += size + random.next() % 8 * 64;
            Span { start, end: start + size, block }
        })
        .collect()
}

/// Memory of which `percent` of the words point into objects; most of the others are small numbers or zero.
fn memory(bytes: usize, spans: &[Span], percent: u64) -> Vec<u8> {
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
    (0..bytes / 8).map(word).flat_map(u64::to_le_bytes).collect()
}

/// Blocks without contents: what is measured is the reading of roots.
struct Nothing;

impl Contents for Nothing {
    fn read(&self, _: u32, _: &mut dyn FnMut(u64, &[u8])) {}
}

impl Surroundings for Nothing {
    fn is_dead(&self, _: u64, _: u64) -> bool {
        false
    }
}

fn lookup(criterion: &mut Criterion) {
    let spans = spans();
    let index = Index::new(spans.clone());
    let mut group = criterion.benchmark_group("index, find");
    group.throughput(Throughput::Elements(1));
    let mut random = Random(3);
    let inside: Vec<u64> = (0..1 << 14).map(|_| spans[(random.next() % BLOCKS) as usize].start + 8).collect();
    let mut at = 0;
    group.bench_function("an object", |bencher| {
        bencher.iter(|| {
            at = (at + 1) % inside.len();
            index.find(black_box(inside[at]))
        });
    });
    group.bench_function("no address", |bencher| bencher.iter(|| index.find(black_box(0x1234))));
    group.finish();
    criterion.bench_function("index, built of 100,000 spans", |bencher| bencher.iter(|| Index::new(spans.clone())));
}

fn roots(criterion: &mut Criterion) {
    let spans = spans();
    let (index, percpu) = (Index::new(spans.clone()), Index::new(vec![]));
    let rules = vec![Rule::default(); BLOCKS as usize];
    let mut group = criterion.benchmark_group("scan of 16 MiB");
    group.throughput(Throughput::Bytes(ROOTS as u64)).sample_size(20);
    for percent in [1, 5, 20] {
        let memory = memory(ROOTS, &spans, percent);
        group.bench_function(BenchmarkId::new("percent of words that are pointers", percent), |bencher| {
            bencher.iter(|| {
                let mut marker = Marker::new(&index, &percpu, &rules, &Nothing);
                marker.root(0, black_box(&memory));
                marker.finish(&Nothing).marked.len()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, lookup, roots);
criterion_main!(benches);
