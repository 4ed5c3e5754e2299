//! The duration of a check of a real guest, and of decoding its symbols.
//!
//! The environment variable `LIBLEAK_SNAPSHOT` names the snapshot of the guest. By default it is
//! the small one in the tests. Reading the file is not measured.

use checker::threads;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use detector::suppress::Suppressions;
use guest_symbols::kallsyms;
use guest_symbols::memory::StoppedMemory;
use snapshot::Snapshot;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::path::PathBuf;

fn guest() -> Snapshot {
    let golden = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/snapshot"));
    let path = std::env::var_os("LIBLEAK_SNAPSHOT").map_or_else(golden, PathBuf::from);
    Snapshot::open(&path).unwrap_or_else(|why| panic!("{why}"))
}

fn check(criterion: &mut Criterion) {
    let snapshot = guest();
    let (moment, none) = (snapshot.moment(), Suppressions::default());
    let outcome = moment.check(None, &none).unwrap_or_else(|why| panic!("{why}"));
    let mut group = criterion.benchmark_group(format!("check of {} objects", outcome.live.objects));
    group.sample_size(10).throughput(Throughput::Bytes(outcome.root_bytes + outcome.heap_bytes));
    for count in [1, 2, 4, 8] {
        let pool = threads::pool(NonZeroUsize::new(count));
        group.bench_function(BenchmarkId::new("threads", count), |bencher| {
            bencher.iter(|| match &pool {
                Some(pool) => pool.install(|| moment.check(None, &none)),
                None => moment.check(None, &none),
            });
        });
    }
    group.finish();
}

fn symbols(criterion: &mut Criterion) {
    let snapshot = guest();
    let moment = snapshot.moment();
    let (kernel, memory) = (moment.kernel, moment.memory);
    let (text, end) = (kernel.symbol("_text").expect("_text"), kernel.symbol("_end").expect("_end"));
    let image = memory.slice(kernel.image_phys(text), (end.0 - text.0) as usize).expect("the image is one run of RAM");
    let mut group = criterion.benchmark_group("kallsyms");
    group.sample_size(20).throughput(Throughput::Elements(kernel.symbols.len() as u64));
    group
        .bench_function("decoded", |bencher| bencher.iter(|| kallsyms::decode(black_box(image), text.0, None).is_ok()));
    group.finish();
}

criterion_group!(benches, check, symbols);
criterion_main!(benches);
