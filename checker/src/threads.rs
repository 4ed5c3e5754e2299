//! The threads that share a check.

use rayon::{ThreadPool, ThreadPoolBuilder};
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

/// Most threads by default. More threads do not make reading memory faster.
const MAX_THREADS: usize = 8;

/// Starts a pool of `wanted` threads, or of one thread for each processor, up to 8. They share a
/// check that runs in it ([`ThreadPool::install`]). The result is the same as with one thread.
///
/// `None` if one thread is enough or the system cannot start threads. The threads block the same
/// signals as the calling thread.
pub fn pool(wanted: Option<NonZeroUsize>) -> Option<ThreadPool> {
    let processors = || available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let count = wanted.map_or_else(processors, usize::from);
    if count < 2 {
        return None;
    }
    let pool = ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("libleak-check{i}")).build();
    pool.inspect_err(|why| log::warn!("one thread checks alone, no others could be started: {why}")).ok()
}
