//! Stacks of allocations. They are unwound when the allocator returns: only then is there an
//! object.

use super::arch;
use super::code::Code;
use super::guest::Guest;
use super::tracer_returns;
use crate::ffi::regs;
use detector::stacks::{StackId, Stacks};
use guest_symbols::Kernel;
use guest_symbols::memory::{GuestMemory, PAGE_SIZE, PhysAddr, StoppedMemory, VirtAddr};
use guest_symbols::paging::PageTables;
use guest_symbols::unwind::cache::Cache;
use guest_symbols::unwind::memo::{Found, Log, Memo, Start};
use guest_symbols::unwind::step::{Bp, State};
use guest_symbols::unwind::walk::{self, Context, Method};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Most frames of a stack, the allocator's included.
pub const MAX_FRAMES: usize = 64;
/// Fewest frames of a stack. Rules by allocation site need the first caller that is not an
/// allocator itself.
const MIN_FRAMES: usize = 4;

/// A walk reads the frame pointer as if it were a word at this address. So the walk depends on it
/// only where it reads it. No stack uses this address.
const FRAME_POINTER: u64 = u64::MAX - 7;

thread_local! {
    /// Rules and walks that this thread has learnt. Each allocation looks them up, without a lock.
    static LEARNT: RefCell<Learnt> = RefCell::default();
}

/// Forgets what this thread has learnt about an earlier kernel.
pub(super) fn forget() {
    LEARNT.take();
}

/// The rules and walks of one thread.
#[derive(Default)]
struct Learnt {
    rules: Cache,
    walks: Memo<Walked>,
}

/// The result of a part of a walk.
#[derive(Clone, Copy)]
enum Walked {
    /// The walk reached the end of the stack.
    Stack(StackId),
    /// The walk reached a frame that is located by the frame pointer. The fields are the frames so
    /// far, and the instruction address in that frame.
    Part(StackId, u64),
}

/// Durations of unwinding, for LIBLEAK_LOG=info.
#[derive(Default)]
struct Times {
    count: AtomicU64,
    /// Duration in nanoseconds, and number of frames walked; 0 frames if the walk was known.
    samples: Mutex<Vec<(u64, usize)>>,
}

/// One of this many stacks is timed.
const EVERY: u64 = 16;
/// Samples kept.
const MAX_SAMPLES: usize = 1 << 20;

impl Times {
    fn measure(&self, find: impl FnOnce() -> (StackId, usize)) -> StackId {
        if !self.count.fetch_add(1, Ordering::Relaxed).is_multiple_of(EVERY) {
            return find().0;
        }
        let began = Instant::now();
        let (id, n) = find();
        let took = began.elapsed().as_nanos() as u64;
        let mut samples = self.samples.lock();
        if samples.len() < MAX_SAMPLES {
            samples.push((took, n));
        }
        id
    }

    /// Logs how long it took.
    fn log(&self, stacks: usize) {
        let samples = self.samples.lock();
        let mut times: Vec<u64> = samples.iter().map(|(took, _)| *took).collect();
        times.sort_unstable();
        let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or(0);
        let walked = samples.iter().filter(|(_, n)| *n > 0).count();
        let frames: usize = samples.iter().map(|(_, n)| n).sum();
        log::info!(
            "unwinding took {} ns in the median of {} samples, {} at 90 % and {} at 99 %; {:.1} % were walked, {:.1} frames on average; {stacks} different stacks",
            at(50),
            times.len(),
            at(90),
            at(99),
            100.0 * walked as f64 / samples.len().max(1) as f64,
            frames as f64 / walked.max(1) as f64
        );
    }
}

/// Unwinds stacks, and keeps them.
pub struct Unwinder {
    code: Code,
    stacks: Stacks,
    /// Parts of stacks, from the allocator to a frame that is located by the frame pointer.
    parts: Stacks,
    /// Frames kept of each stack.
    frames: usize,
    /// Durations, if they are to be logged.
    times: Option<Times>,
}

impl Unwinder {
    /// An unwinder for the kernel's code. It keeps at most `frames` frames of each stack.
    pub fn new(kernel: &Kernel, memory: &impl StoppedMemory, frames: usize) -> Unwinder {
        Unwinder {
            code: Code::new(kernel, memory),
            stacks: Stacks::default(),
            parts: Stacks::default(),
            frames,
            times: log::log_enabled!(log::Level::Info).then(Times::default),
        }
    }

    /// All stacks that were unwound.
    pub fn stacks(&self) -> &Stacks {
        &self.stacks
    }

    /// The kernel's code.
    pub fn code(&self) -> &Code {
        &self.code
    }

    /// Whether some stacks were cut because there were too many.
    pub fn is_cut(&self) -> bool {
        self.stacks.is_cut() || self.parts.is_cut()
    }

    /// Logs how long unwinding took.
    pub fn log_times(&self) {
        if let Some(times) = &self.times {
            times.log(self.stacks.len());
        }
    }

    /// Unwinds the stack of a call that has just returned. The function at virtual address
    /// `allocator` returned to virtual address `ret`, and the stack pointer is `sp`. Call it only
    /// in callbacks that may read registers.
    pub(super) fn stack(&self, guest: &Guest, allocator: u64, ret: u64, sp: u64) -> StackId {
        let start = Start { function: allocator, ret, sp };
        let find = || LEARNT.with_borrow_mut(|learnt| self.find(guest, learnt, start));
        match &self.times {
            None => find().0,
            Some(times) => times.measure(find),
        }
    }

    /// Returns the stack, and how many of its frames were walked: 0 if the walk was known.
    #[inline]
    fn find(&self, guest: &Guest, learnt: &mut Learnt, mut start: Start) -> (StackId, usize) {
        let generation = self.code.generation();
        let mut words = Words { guest, tables: guest.kernel.page_tables(&guest.ram), page: 1, frame: 0 };
        let (mut state, mut before) = (State::returned(start.ret, start.sp, Bp::SavedAt(FRAME_POINTER)), StackId::NONE);
        let mut walked = 0;
        loop {
            let found = learnt.walks.find(start, generation, |at| words.read(at)).unwrap_or_else(|| {
                let (found, frames) = self.walk_on(learnt, &mut words, start, state, before);
                walked += frames;
                found
            });
            let (part, ip) = match found.result {
                Walked::Stack(id) => return (id, walked),
                Walked::Part(part, ip) => (part, ip),
            };
            let Some(bp) = found.frame_pointer_at.and_then(|at| words.read(at)) else {
                let frames = self.parts.frames(part);
                return (self.stacks.intern(&[&frames, &[ip][..]].concat()), walked);
            };
            // The number of the previous part takes the place of the called function.
            start = Start { function: part.0.into(), ret: ip, sp: bp };
            (state, before) = (State::with_frame_pointer(ip, bp), part);
        }
    }

    /// Walks one part and remembers it. `before` holds the frames so far.
    #[cold]
    fn walk_on(
        &self,
        learnt: &mut Learnt,
        words: &mut Words<'_>,
        start: Start,
        state: State,
        before: StackId,
    ) -> (Found<Walked>, usize) {
        let mut frames = [start.function; MAX_FRAMES];
        let earlier = self.parts.frames(before);
        // The first part starts with the allocator's own frame.
        let done = earlier.len().max(1);
        frames[..earlier.len()].copy_from_slice(&earlier);
        let wanted = self.frames.clamp(MIN_FRAMES, MAX_FRAMES);
        let generation = self.code.generation();
        let mut stack =
            Stack { words, code: &self.code, generation, rules: &mut learnt.rules, log: Log::new(start.sp) };
        let walked = walk::walk_on(&mut stack, state, &mut frames[done..wanted]);
        let mut log = stack.log;
        let all = done + walked.frames;
        let result = match walked.frame_pointer_at {
            // The frame that the frame pointer locates is added again by the next part.
            Some(at) if all < wanted => {
                log.end_at(at);
                Walked::Part(self.parts.intern(&frames[..all - 1]), frames[all - 1])
            }
            _ => {
                // Without any unwind information there is no frame. The call itself was seen.
                frames[1] = if all == 1 { start.ret } else { frames[1] };
                Walked::Stack(self.stacks.intern(&frames[..all.max(2)]))
            }
        };
        let frame_pointer_at = walked.frame_pointer_at;
        learnt.walks.keep(start, log, result);
        (Found { result, frame_pointer_at }, walked.frames)
    }
}

/// Reads words of the current CPU's stack.
struct Words<'a> {
    guest: &'a Guest,
    tables: PageTables,
    /// Virtual address of the page that was read last; 1 if there is none. It stays mapped during a
    /// walk: this CPU runs on that stack.
    page: u64,
    /// Guest physical address of that page.
    frame: u64,
}

impl Words<'_> {
    #[inline]
    fn read(&mut self, at: u64) -> Option<u64> {
        if at == FRAME_POINTER {
            return Some(regs::read(arch::FRAME_POINTER));
        }
        let within = at % PAGE_SIZE;
        let page = at - within;
        let ram = &self.guest.ram;
        if within > PAGE_SIZE - 8 {
            return self.guest.kernel.read_u64(ram, VirtAddr(at)).ok();
        }
        if page != self.page {
            let found = self.tables.translate(ram, VirtAddr(page)).ok()?;
            (self.page, self.frame) = (page, found.phys.0);
        }
        ram.read_u64(PhysAddr(self.frame + within)).ok()
    }
}

/// A walk in progress.
struct Stack<'s, 'a> {
    words: &'s mut Words<'a>,
    code: &'s Code,
    generation: u64,
    rules: &'s mut Cache,
    log: Log,
}

impl Context for Stack<'_, '_> {
    #[inline]
    fn read(&mut self, at: u64) -> Option<u64> {
        let word = self.words.read(at);
        match word {
            Some(word) => self.log.note(at, word),
            None => self.log.spoil(),
        }
        word
    }

    #[inline]
    fn method(&mut self, at: u64) -> Method {
        let (guest, code) = (self.words.guest, self.code);
        self.rules.get(at, self.generation, || code.method(&guest.kernel, &guest.ram, at))
    }

    #[inline]
    fn is_text(&self, at: u64) -> bool {
        self.code.is_text(at)
    }

    #[inline]
    fn original(&mut self, ip: u64, slot: u64) -> u64 {
        if !self.code.is_tracer(ip) {
            return ip;
        }
        // The result depends on the task's shadow stack, so the walk cannot be remembered.
        self.log.spoil();
        tracer_returns::original(self.words.guest, ip, slot)
    }
}
