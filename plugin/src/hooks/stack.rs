//! The stack of an allocation, unwound when the allocator returns: by then it is known that there is an object.

use super::code::Code;
use super::tracker::Tracker;
use crate::ffi::regs::{self, Reg};
use detector::stacks::StackId;
use guest_symbols::memory::{GuestMemory, PAGE_SIZE, PhysAddr, VirtAddr};
use guest_symbols::paging::PageTables;
use guest_symbols::unwind::cache::Cache;
use guest_symbols::unwind::step::State;
use guest_symbols::unwind::walk::{self, Context, Method};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Most frames of a stack, the allocator's included.
pub const MAX_FRAMES: usize = 64;

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::default();
}

/// How long unwinding took, for LIBLEAK_LOG=info: of every so many stacks one is timed.
#[derive(Default)]
pub struct Times {
    count: AtomicU64,
    /// Nanoseconds, and frames.
    samples: Mutex<Vec<(u64, usize)>>,
}

/// One of so many stacks is timed.
const EVERY: u64 = 16;
/// Samples kept.
const MAX_SAMPLES: usize = 1 << 20;

impl Times {
    fn measure(&self, frames: impl FnOnce() -> usize) -> usize {
        if !self.count.fetch_add(1, Ordering::Relaxed).is_multiple_of(EVERY) {
            return frames();
        }
        let began = Instant::now();
        let n = frames();
        let took = began.elapsed().as_nanos() as u64;
        let mut samples = self.samples.lock();
        if samples.len() < MAX_SAMPLES {
            samples.push((took, n));
        }
        n
    }

    /// Says how long it took.
    pub fn log(&self, stacks: usize) {
        let samples = self.samples.lock();
        let mut times: Vec<u64> = samples.iter().map(|(took, _)| *took).collect();
        times.sort_unstable();
        let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or(0);
        let frames: usize = samples.iter().map(|(_, n)| n).sum();
        log::info!(
            "unwinding took {} ns in the median of {} samples, {} at 90 % and {} at 99 %, of {:.1} frames on average; {stacks} different stacks",
            at(50),
            times.len(),
            at(90),
            at(99),
            frames as f64 / samples.len().max(1) as f64
        );
    }
}

impl Tracker {
    /// The stack of a call of the function at `allocator` that has just returned to `ret`, its stack pointer then being
    /// `sp`.
    pub(super) fn stack(&self, allocator: u64, ret: u64, sp: u64) -> StackId {
        let mut frames = [0; MAX_FRAMES];
        frames[0] = allocator;
        let wanted = self.frames.clamp(2, MAX_FRAMES);
        let unwind = |frames: &mut [u64]| {
            CACHE.with_borrow_mut(|cache| {
                let mut stack = Stack {
                    tracker: self,
                    code: &self.code,
                    tables: self.kernel.page_tables(&self.ram),
                    page: 1,
                    frame: 0,
                    generation: self.code.generation(),
                    cache,
                };
                walk::walk(&mut stack, State::returned(ret, sp, regs::read(Reg::Rbp)), frames)
            })
        };
        let n = match &self.times {
            None => unwind(&mut frames[1..wanted]),
            Some(times) => times.measure(|| unwind(&mut frames[1..wanted])),
        };
        if n == 0 {
            // Code that is in no known place; the call itself was seen.
            frames[1] = ret;
        }
        self.stacks.intern(&frames[..1 + n.max(1)])
    }
}

/// A walk in progress.
struct Stack<'a> {
    tracker: &'a Tracker,
    code: &'a Code,
    tables: PageTables,
    /// The page that was read last, by virtual address; 1 is none. Within one walk it does not move: it is of the stack
    /// that this CPU runs on.
    page: u64,
    /// Where it lies in physical memory.
    frame: u64,
    generation: u64,
    cache: &'a mut Cache,
}

impl Context for Stack<'_> {
    #[inline]
    fn read(&mut self, at: u64) -> Option<u64> {
        let within = at % PAGE_SIZE;
        let page = at - within;
        let ram = &self.tracker.ram;
        if within > PAGE_SIZE - 8 {
            return self.tracker.kernel.read_u64(ram, VirtAddr(at)).ok();
        }
        if page != self.page {
            let found = self.tables.translate(ram, VirtAddr(page)).ok()?;
            (self.page, self.frame) = (page, found.phys.0);
        }
        ram.read_u64(PhysAddr(self.frame + within)).ok()
    }

    #[inline]
    fn method(&mut self, at: u64) -> Method {
        let (tracker, code) = (self.tracker, self.code);
        self.cache.get(at, self.generation, || code.method(&tracker.kernel, &tracker.ram, at))
    }

    #[inline]
    fn is_text(&self, at: u64) -> bool {
        self.code.is_text(at)
    }

    #[inline]
    fn original(&mut self, ip: u64, slot: u64) -> u64 {
        if self.code.is_tracer(ip) { self.tracker.untraced(ip, slot) } else { ip }
    }
}
