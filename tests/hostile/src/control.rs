//! Messages of the control socket.

use crate::input::Input;
use detector::control::{Envelope, Event, Grown, Live, MAX_LINE, Reasons, Request, Status};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use std::io::{self, Read};

// The plugin is a C library only. As a Rust library too, cargo would build both without link-time
// optimisation.
#[path = "../../../plugin/src/triggers/control/lines.rs"]
#[allow(clippy::should_implement_trait)]
pub mod lines;

use lines::{Line, Lines};

/// Most bytes of a line here. It is less than the real bound, so that inputs contain longer lines.
const LIMIT: usize = 512;

/// Returns its bytes in small pieces, as a socket may.
struct Drops<'a>(Input<'a>, usize);

impl Read for Drops<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let bytes = self.0.bytes(self.1.min(to.len()));
        to[..bytes.len()].copy_from_slice(bytes);
        Ok(bytes.len())
    }
}

/// The first byte is the size of the pieces. The input follows.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let step = usize::from(input.u8()) + 1;
    let text = input.0;
    let mut lines = Lines::new(Drops(input, step), LIMIT);
    let mut whole = Vec::new();
    loop {
        match lines.next().expect("nothing fails") {
            Line::Whole(line) => whole.push(line),
            Line::TooLong => whole.push(Vec::new()),
            Line::End => break,
        }
    }
    // Text without a line end is not a line.
    let end = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let expected = text[..end].split_inclusive(|b| *b == b'\n').map(|line| &line[..line.len() - 1]);
    let expected: Vec<&[u8]> = expected.map(|line| if line.len() > LIMIT { &[] } else { line }).collect();
    assert_eq!(whole, expected);
    for line in &whole {
        assert!(line.len() <= LIMIT.min(MAX_LINE));
        again::<Request>(line);
        again::<Event>(line);
        again::<Envelope<Status>>(line);
        again::<Envelope<Live>>(line);
        again::<Envelope<Grown>>(line);
        again::<Envelope<Reasons>>(line);
    }
}

/// A parsed request is written as it was read.
fn again<T: DeserializeOwned + Serialize + PartialEq + Debug>(line: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(line) else { return };
    let text = serde_json::to_string(&value).expect("it can be written");
    assert!(!text.contains('\n'));
    let read = serde_json::from_str::<T>(&text).unwrap_or_else(|why| panic!("{why}: {text}"));
    assert_eq!(read, value);
}
