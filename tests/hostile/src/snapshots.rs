//! Snapshots.

use crate::input::Input;
use checker::names::Load;
use checker::report::{Asked, report};
use detector::report::Format;
use detector::suppress::Suppressions;
use guest_symbols::memory::GuestMemory;
use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};
use snapshot::{MAGIC, Snapshot, VERSION};
use std::io::Write;
use std::path::Path;

/// The first byte selects the input that follows: a file, or its uncompressed contents. In a file,
/// nearly all changes fail at the checksums.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let made;
    let file = if input.u8() & 1 == 0 {
        input.0
    } else {
        made = frame(input.0);
        &made
    };
    let snapshot = match Snapshot::read(file, Path::new("a/file")) {
        Ok(snapshot) => snapshot,
        Err(why) => return assert!(why.to_string().len() < 2000, "{why}"),
    };
    let moment = snapshot.moment();
    assert!(moment.objects.list().is_sorted_by_key(|(at, _)| *at));
    assert!(moment.memory.ranges().is_sorted_by(|a, b| a.end <= b.start));
    for (_, object) in moment.objects.list().iter().take(100) {
        let _ = (moment.names().frames(object), moment.objects.jiffies(object), moment.objects.millis(object));
        let _ = moment.tests.of(object.sequence());
    }
    for Load { module, .. } in moment.modules.iter().take(100) {
        let _ = (module.symbols().filter_map(|s| module.resolve(s.addr)).count(), module.symbol_count());
    }
    let none = Suppressions::default();
    if let Ok(outcome) = moment.check(Some("insmod"), &none) {
        let asked = Asked { audit: true, pause: None, suppressions: &none, unused: true };
        let report = report(moment.names(), &outcome, &moment.counters, asked);
        let _ = Format::Text.write(&report, true);
    }
}

/// A file with these contents.
pub fn frame(contents: &[u8]) -> Vec<u8> {
    let info = FrameInfo::new().block_size(BlockSize::Max64KB).block_checksums(true);
    let mut out = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
    let mut encoder = FrameEncoder::with_frame_info(info, &mut out);
    encoder.write_all(contents).expect("memory");
    encoder.finish().expect("memory");
    out
}
