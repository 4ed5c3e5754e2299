//! The session of one QEMU process: it finds the guest's kernel, tracks it, checks it ([`checks`]),
//! and follows reboots ([`boots`]).

mod boots;
pub mod checks;
mod collected;
pub mod demand;
mod error;
mod hibernation;
mod history;
mod report_queue;
mod vmlinux;

pub use error::{NotTracked, StartError};

use crate::diagnostics;
use crate::ffi::api::Block;
use crate::ffi::panics;
use crate::ffi::ram::Ram;
use crate::ffi::signals;
use crate::ffi::vcpu;
use crate::ffi::witness::GuestStopped;
use crate::hooks::guest::Guest;
use crate::hooks::guest_events::GuestEvents;
use crate::hooks::resolved::Wanted;
use crate::hooks::tracker::{Kept, Tracker};
use crate::hooks::translate::is_of_image;
use crate::hooks::troubles::Trouble;
use crate::hooks::{attach, current};
use crate::options::Options;
use crate::output::Output;
use crate::pause::pace::Pace;
use detector::suppress::Suppressions;
use error::TakeUpError;
use guest_symbols::kernel::KernelError;
use guest_symbols::symbol_file::SymbolFile;
use guest_symbols::{Kernel, VirtAddr};
use lines::Lines;
use parking_lot::Mutex;
use rayon::ThreadPool;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Minimum age of objects that interval scans report, as in kmemleak (MSECS_MIN_AGE).
const INTERVAL_MIN_AGE: Duration = Duration::from_secs(5);
/// Bytes read of `linux_banner`, which starts with "Linux version RELEASE".
const MAX_BANNER: usize = 256;
/// Number of searches before giving up. They run at the kernel's first, second, third and fifth
/// block and so on, up to about block half a million.
const MAX_SEARCHES: u32 = 20;

/// Makes the listener for the events of one kernel.
pub type Listen = fn(&'static Session) -> Arc<dyn GuestEvents>;

/// The session. There is one in each QEMU process, because QEMU loads a plugin once.
pub struct Session {
    /// The user's options.
    pub options: Options,
    output: Output,
    suppressions: Suppressions,
    /// Source lines from the user's files, or from the running kernel's own vmlinux.
    lines: Mutex<Option<Arc<Lines>>>,
    /// Files beside the kernel's image.
    beside: vmlinux::Beside,
    symbols: Mutex<Option<SymbolFile>>,
    search: boots::Search,
    /// Why there is no kernel, once this is known.
    failure: Mutex<Option<String>>,
    listen: Listen,
    /// When the guest may be stopped again.
    pub pace: Pace,
    /// Reports requested by markers.
    reports: report_queue::ReportQueue,
    /// Held during a check.
    checking: Mutex<()>,
    marks: Mutex<checks::Marks>,
    history: Mutex<history::History>,
    /// QEMU is exiting.
    ended: AtomicBool,
    /// Threads for checks; `None` if one thread is enough.
    pool: OnceLock<Option<ThreadPool>>,
}

/// Set once, at install. QEMU's callbacks have no data that could hold it.
static SESSION: OnceLock<Session> = OnceLock::new();

/// The session; `None` before install.
pub fn session() -> Option<&'static Session> {
    SESSION.get()
}

impl Session {
    /// Starts the session.
    ///
    /// # Errors
    /// [`StartError`], whose text is the line to print.
    pub fn start(options: Options, listen: Listen) -> Result<&'static Session, StartError> {
        let suppressions = Suppressions::read(&options.suppress)?;
        options.snapshot.as_deref().map(snapshot::try_path).transpose()?;
        let symbols = options.symbols.as_deref().map(SymbolFile::open).transpose()?;
        let lines = if options.debug.is_empty() { None } else { Some(Lines::open(&options.debug)) };
        let lines = lines.transpose()?;
        // Last, so that no file is emptied if QEMU does not start.
        let output = Output::open(&options);
        let session = SESSION.get_or_init(|| Session {
            options,
            output,
            suppressions,
            lines: Mutex::new(lines.map(Arc::new)),
            beside: vmlinux::Beside::this_qemu(),
            symbols: Mutex::new(symbols),
            search: boots::Search::default(),
            failure: Mutex::new(None),
            listen,
            pace: Pace::default(),
            reports: report_queue::ReportQueue::default(),
            checking: Mutex::new(()),
            marks: Mutex::default(),
            history: Mutex::default(),
            ended: AtomicBool::new(false),
            pool: OnceLock::new(),
        });
        diagnostics::also_to(&session.output);
        Session::watch_ends();
        Ok(session)
    }

    /// Where reports and messages go.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Source lines, if there are any.
    fn lines(&self) -> Option<Arc<Lines>> {
        self.lines.lock().clone()
    }

    /// QEMU translates a block.
    pub fn translate(&'static self, block: Block) {
        let start = block.vaddr();
        let search = &self.search;
        if !search.blocks.load(Ordering::Relaxed) {
            search.blocks.store(true, Ordering::Relaxed);
        }
        self.take_up_loaded();
        if !VirtAddr(start).is_kernel() {
            if search.leaving.load(Ordering::Relaxed) {
                // Firmware and boot loaders run in the lower half of the address space, so the next
                // kernel may follow.
                search.leaving.store(false, Ordering::Relaxed);
            }
            if self.options.guest_markers {
                current::with_events(|tracker, events| events.translate(tracker, block));
            }
            return;
        }
        if !current::is_tracking() {
            self.search(block, start);
        }
        if self.watch(block) == Some(false) && is_of_image(start) {
            if self.is_gone() {
                self.search(block, start);
            }
            // Another vCPU may have found the next kernel in the meantime.
            self.watch(block);
        }
    }

    /// Adds callbacks to a block in the kernel's half. Returns whether it belongs to the tracked
    /// kernel; `None` if no kernel is tracked.
    fn watch(&self, block: Block) -> Option<bool> {
        current::with_events(|tracker, events| {
            let is_own = tracker.translate(block);
            if is_own && self.options.guest_markers {
                events.translate(tracker, block);
            }
            is_own
        })
    }

    /// Looks for the kernel that this block belongs to.
    fn search(&'static self, block: Block, start: u64) {
        let search = &self.search;
        if search.settled.load(Ordering::Acquire) || search.leaving.load(Ordering::Relaxed) {
            return;
        }
        // The code that restores an image of hibernation lies outside of kernel images.
        if search.restoring.load(Ordering::Relaxed) && !is_of_image(start) {
            return;
        }
        // One vCPU searches. In a guest that was loaded others may run too. They wait here until it
        // is known what to watch in their blocks. The search does not depend on them.
        let symbols = self.symbols.lock();
        if search.settled.load(Ordering::Acquire) {
            return;
        }
        let n = search.kernel_blocks.fetch_add(1, Ordering::Relaxed);
        // The first block may belong to a module, so the next searches follow soon.
        if n != 0 && !n.is_power_of_two() {
            return;
        }
        if search.restoring.swap(false, Ordering::Relaxed) && self.take_up_image() {
            search.settled.store(true, Ordering::Relaxed);
            return;
        }
        match self.find(block, start, symbols.as_ref()) {
            Ok(has_run) => {
                search.settled.store(true, Ordering::Relaxed);
                // It may have been tracked before as an earlier boot: after a reset, firmware may
                // resume a suspended kernel.
                if n > 0 || has_run {
                    log::info!("blocks of the kernel were translated before: all are translated again");
                    vcpu::flush_translations();
                }
            }
            Err(NotFound::NotYet(why)) => {
                log::info!("{why}");
                if search.searches.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_SEARCHES {
                    search.settled.store(true, Ordering::Relaxed);
                }
                *self.failure.lock() = Some(why);
            }
            Err(NotFound::Never(why)) => {
                diagnostics::error(&why);
                search.settled.store(true, Ordering::Relaxed);
                *self.failure.lock() = Some(why);
            }
        }
    }

    /// Finds the kernel that this block belongs to. Returns whether it has run before.
    fn find(&'static self, block: Block, start: u64, symbols: Option<&SymbolFile>) -> Result<bool, NotFound> {
        let began = Instant::now();
        let code = block.insn(0).map_or(std::ptr::null(), |i| i.host_address());
        let ram = Ram::find(code).map_err(|e| NotFound::Never(e.to_string()))?;
        let phys = ram
            .phys_of(code)
            .ok_or_else(|| NotFound::NotYet(format!("the kernel block at {start:#x} is not in RAM")))?;
        // SAFETY: this seems to be the first block of a kernel. The boot CPU is then the only one
        // that runs, and it is in this callback. In a guest that was loaded, other CPUs may run.
        // They write kernel data, and not the read-only data and code that are read here.
        #[expect(unsafe_code, reason = "states that the guest is stopped")]
        let stopped = unsafe { GuestStopped::new() };
        let kernel = {
            let memory = ram.stopped(&stopped);
            // Types may be read from a file, by threads that are started for that.
            let found = signals::while_blocked(|| Kernel::find(&memory, VirtAddr(start), phys, symbols));
            self.beside.complete(found, &memory, (VirtAddr(start), phys)).map_err(|incomplete| {
                match incomplete.why {
                    KernelError::NotLinux(_) => NotFound::NotYet(incomplete.to_string()),
                    _ => NotFound::Never(incomplete.to_string()),
                }
            })?
        };
        log::info!(
            "Linux {}: {} symbols, {} types, found in {:?}",
            kernel.release,
            kernel.symbols.len(),
            kernel.btf.as_ref().map_or(0, |b| b.len()),
            began.elapsed()
        );
        if self.options.debug.is_empty() {
            *self.lines.lock() = self.beside.lines(&kernel, &ram).map(Arc::new);
        } else if let Some(Err(why)) = self.lines().map(|lines| lines.check_kernel(&kernel, &ram)) {
            diagnostics::warning(&format!("{why}; without it, frames of the kernel have no source lines"));
        }
        let wanted =
            Wanted { pages: self.options.pages, markers: self.options.guest_markers, console: self.options.ktap };
        let boot = self.search.boots.fetch_add(1, Ordering::Relaxed) + 1;
        let has_run = attach::has_run(&kernel, &ram) || self.search.kernel_blocks.load(Ordering::Relaxed) > 1;
        let kept =
            Kept { frames: self.options.frames, objects: self.options.max_objects, history: self.options.history };
        let guest = Guest::new(kernel, ram, boot, &stopped);
        let (tracker, missing) = Tracker::new(guest, wanted, kept, &stopped);
        if has_run {
            tracker.join();
        }
        if !missing.is_empty() {
            let trouble = Trouble::NoHook(missing);
            diagnostics::warning(&format!("{trouble}, and the report is not to be trusted"));
            tracker.troubles.enter(&trouble);
        }
        current::set(Some((Arc::new(tracker), (self.listen)(self))));
        log::info!("ready {:?} after the first kernel block", began.elapsed());
        Ok(has_run)
    }

    /// The tracked kernel.
    ///
    /// # Errors
    /// [`NotTracked`].
    pub fn tracked(&self) -> Result<Arc<Tracker>, NotTracked> {
        match panics::halted() {
            Some(_) => Err(NotTracked::Halted),
            None => self.known(),
        }
    }

    /// The tracked kernel, or the one that was tracked until libleak panicked.
    fn known(&self) -> Result<Arc<Tracker>, NotTracked> {
        let Some(tracker) = current::tracker() else {
            let why = self.failure.lock().clone();
            return Err(match why {
                _ if !self.search.blocks.load(Ordering::Relaxed) => NotTracked::NoCode,
                Some(why) => NotTracked::NoKernel(why),
                None if self.is_between() => NotTracked::Between,
                None => NotTracked::NoLinux,
            });
        };
        if tracker.guest.is_replaced() {
            return Err(NotTracked::Replaced);
        }
        if tracker.objects.counters().allocations == 0 {
            return Err(NotTracked::NoAllocations(tracker.guest.kernel.release.clone()));
        }
        Ok(tracker)
    }

    /// QEMU exits: the vCPUs have stopped.
    pub fn exit(&self, stopped: &GuestStopped) {
        self.ended.store(true, Ordering::Relaxed);
        self.take_up_loaded();
        self.conclude(stopped, true);
    }

    /// Prepares one more check after a panic ended the tracking. Later events are not known. The
    /// kernel's allocator metadata tells what is still allocated, provided that the same kernel
    /// still runs.
    fn take_up(&self, tracker: &Tracker, since: Instant) -> Result<(), TakeUpError> {
        let before = tracker.time.rewinds();
        tracker.check_time(false);
        if tracker.time.rewinds() > before {
            return Err(TakeUpError::Rewound);
        }
        let banner = tracker.guest.kernel.symbols.lookup("linux_banner").map(VirtAddr);
        let banner = banner.map(|at| tracker.guest.kernel.read_string(&tracker.guest.ram, at, MAX_BANNER));
        if banner.is_some_and(|banner| !banner.contains(&tracker.guest.kernel.release)) {
            return Err(TakeUpError::OtherKernel);
        }
        tracker.troubles.enter(&Trouble::Halted(since.elapsed().as_secs()));
        Ok(())
    }

    /// Whether QEMU is exiting.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Default minimum age of objects that requested scans report.
    pub fn asked_min_age(&self) -> Duration {
        self.options.min_age.unwrap_or_default()
    }

    /// Minimum age of objects that interval scans report.
    pub fn interval_min_age(&self) -> Duration {
        self.options.min_age.unwrap_or(INTERVAL_MIN_AGE)
    }
}

/// Why no kernel was found.
enum NotFound {
    /// A later block may succeed.
    NotYet(String),
    /// No block will succeed.
    Never(String),
}
