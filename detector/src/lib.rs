//! Live objects of a guest kernel, the references between them, and reports of leaks.
//!
//! This crate does no input or output besides reading suppression files, and it reads no kernel
//! structure. Memory arrives as byte slices. Addresses are virtual addresses of the guest kernel,
//! or `__percpu` pointers where a type says so. What it knows of Linux differs by folder:
//!
//! - `scan` knows no Linux. It finds blocks by address and marks the reachable ones.
//! - `live` records allocations in the kernel's terms: vmalloc, per-CPU, `kfree_rcu()`, jiffies.
//! - [`guest_tests`] reads KTAP, the test output of KUnit and kselftest.
//! - [`report`] writes results in kmemleak's text format and as JSON, and reads them back.
//!
//! The modules, by folder:
//!
//! - [`scan`]: marks blocks that are reachable from the roots
//! - [`index`]: finds the block that an address points into
//! - [`bits`]: one bit per block
//! - [`graph`]: separates direct leaks from indirect ones
//! - [`objects`]: the map of live objects; [`object`] is one entry
//! - [`frozen`]: a copy of the map, with task names ([`comms`]) and clock readings ([`clock`])
//! - [`stacks`]: allocation stacks, each stored once
//! - [`history`]: which words refer to which objects, followed store by store
//! - [`guest_tests`]: which test an allocation belongs to; [`ktap`] parses its lines
//! - [`report`]: the report and its formats
//! - [`suppress`]: leaks that the user does not want to see
//! - [`control`]: the messages of the control socket
//!
//! # Example
//!
//! A root points to block 0, block 0 points to block 1, and nothing points to block 2:
//!
//! ```
//! use detector::index::{Index, Span};
//! use detector::scan::{Contents, Marker, Options, Rules, Surroundings};
//!
//! const BASE: u64 = 0xffff_8880_0000_0000;
//!
//! /// Three blocks of 64 bytes each. The first word of block 0 points to block 1.
//! struct Guest;
//!
//! impl Contents for Guest {
//!     fn read(&self, block: u32, each: &mut dyn FnMut(u64, &[u8])) {
//!         let word = if block == 0 { BASE + 64 } else { 0 };
//!         each(0x1000 + 64 * u64::from(block), &word.to_le_bytes());
//!     }
//! }
//!
//! impl Surroundings for Guest {
//!     fn is_stale(&self, _word: u64, _at: u64) -> bool {
//!         false
//!     }
//! }
//!
//! let span = |block: u32| {
//!     let start = BASE + 64 * u64::from(block);
//!     Span { start, end: start + 64, block }
//! };
//! let (addresses, percpu) = (Index::new((0..3).map(span)), Index::new([]));
//! let rules = Rules::new(3);
//! let mut marker = Marker::new(&addresses, &percpu, &rules, &Guest, Options::default());
//! // The root word lies at guest physical address 0x200 and points into block 0.
//! marker.root(0x200, &(BASE + 8).to_le_bytes());
//! let marks = marker.finish(&Guest);
//! assert_eq!(marks.marked.zeros().collect::<Vec<u32>>(), [2]);
//! ```

#![deny(unsafe_code)]

mod count;
pub mod guest_tests;
pub mod history;
mod live;
pub mod report;
pub mod scan;

pub use count::Count;
pub use guest_tests::ktap;
pub use live::{clock, comms, frozen, object, objects, stacks};
pub use report::{control, suppress};
pub use scan::{bits, graph, index};
