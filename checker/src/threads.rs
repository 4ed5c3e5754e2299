//! The threads that share a check.

use rayon::{ThreadPool, ThreadPoolBuilder};
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

/// Threads at most, unless more are asked for: reading memory does not get faster with every further one.
const MAX_THREADS: usize = 8;

/// A pool of as many threads as are `wanted`, or else as many as this machine has processors, up to 8. A check that is made in it
/// ([`ThreadPool::install`]) is shared by them, and finds the same. `None` where one thread is to do it, or where the system gives no threads.
///
/// The threads block the signals that the calling thread does.
pub fn pool(wanted: Option<NonZeroUsize>) -> Option<ThreadPool> {
    let processors = || available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let count = wanted.map_or_else(processors, usize::from);
    if count < 2 {
        return None;
    }
    let pool = ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("libleak-check{i}")).build();
    pool.inspect_err(|why| log::warn!("one thread checks alone, no others could be started: {why}")).ok()
}
