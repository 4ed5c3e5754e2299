//! One guest under observation: waiting for its kernel, tracking, checking ([`checks`]), one kernel after the other
//! ([`boots`]), and the last word.

mod boots;
pub mod checks;
mod history;
pub mod troubles;
mod vmlinux;

use crate::ffi::api::Block;
use crate::ffi::host;
use crate::ffi::panics;
use crate::ffi::ram::Ram;
use crate::ffi::signals;
use crate::hooks::chosen::Wanted;
use crate::hooks::tracker::{Kept, Tracker};
use crate::hooks::translate::is_of_image;
use crate::hooks::{current, joined};
use crate::options::Options;
use crate::output::{self, Output};
use crate::triggers::marker;
use detector::suppress::Suppressions;
use guest_symbols::kernel::KernelError;
use guest_symbols::symbol_file::SymbolFile;
use guest_symbols::{Kernel, VirtAddr};
use lines::Lines;
use parking_lot::Mutex;
use rayon::ThreadPool;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use troubles::Trouble;

/// Age below which interval scans report nothing: what kmemleak waits (MSECS_MIN_AGE).
const INTERVAL_MIN_AGE: Duration = Duration::from_secs(5);
/// Bytes of `linux_banner` that are looked at, which starts with "Linux version RELEASE".
const MAX_BANNER: usize = 256;
/// Searches before it is given up: around the first block of a kernel, the second, the third, the fifth and so on, up to one in
/// half a million.
const MAX_SEARCHES: u32 = 20;

/// State of the process: QEMU loads a plugin once.
pub struct Session {
    /// What the user asked for.
    pub options: Options,
    output: Output,
    suppressions: Suppressions,
    /// Of the files that the user gave, or of the running kernel's own.
    lines: Mutex<Option<Arc<Lines>>>,
    /// What lies beside the kernel's file.
    beside: vmlinux::Beside,
    symbols: Mutex<Option<SymbolFile>>,
    search: boots::Search,
    /// Why there is no kernel, once that is certain.
    failure: Mutex<Option<String>>,
    /// Held during a check.
    checking: Mutex<()>,
    marks: Mutex<checks::Marks>,
    history: Mutex<history::History>,
    /// QEMU exits.
    ended: AtomicBool,
    /// The threads that make a check, where it is more than one.
    pool: OnceLock<Option<ThreadPool>>,
}

/// What is said after a panic of ours.
pub const OFF: &str = "an internal error has ended the tracking, as a line on QEMU's stderr says: there is no report but the last one, at QEMU's end";
const RESET: &str = "the guest started another kernel, and only its first kernel was tracked; \
                     use -no-reboot, and start QEMU again for each boot";

static SESSION: OnceLock<Session> = OnceLock::new();

/// The session; `None` before install.
pub fn session() -> Option<&'static Session> {
    SESSION.get()
}

impl Session {
    /// Starts the session.
    ///
    /// # Errors
    /// The line to print, if an option's file cannot be used.
    pub fn start(options: Options) -> Result<&'static Session, String> {
        let suppressions = Suppressions::read(&options.suppress).map_err(|e| e.to_string())?;
        options.snapshot.as_deref().map(snapshot::try_path).transpose().map_err(|e| e.to_string())?;
        let symbols = options.symbols.as_deref().map(SymbolFile::open).transpose().map_err(|e| e.to_string())?;
        let lines = if options.debug.is_empty() { None } else { Some(Lines::open(&options.debug)) };
        let lines = lines.transpose().map_err(|e| e.to_string())?;
        // Last, so that nothing is emptied when QEMU does not start.
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
            checking: Mutex::new(()),
            marks: Mutex::default(),
            history: Mutex::default(),
            ended: AtomicBool::new(false),
            pool: OnceLock::new(),
        });
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
    pub fn translate(&self, block: Block) {
        let start = block.vaddr();
        let search = &self.search;
        if !search.blocks.load(Ordering::Relaxed) {
            search.blocks.store(true, Ordering::Relaxed);
        }
        self.take_up_loaded();
        if !VirtAddr(start).is_kernel() {
            if search.leaving.load(Ordering::Relaxed) {
                // What brings the next kernel up runs below the kernel's half.
                search.leaving.store(false, Ordering::Relaxed);
            }
            if self.options.guest_markers {
                current::with(|tracker| marker::translate(tracker, block));
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
            // Another vCPU may have found the next one meanwhile.
            self.watch(block);
        }
    }

    /// Watches what is to be watched in a block of the kernel's half. Says whether it is the tracked kernel's; `None` without one.
    fn watch(&self, block: Block) -> Option<bool> {
        current::with(|tracker| {
            let is_own = tracker.translate(block);
            if is_own && self.options.guest_markers {
                marker::translate(tracker, block);
            }
            is_own
        })
    }

    /// Looks for the kernel that this block belongs to.
    fn search(&self, block: Block, start: u64) {
        let search = &self.search;
        if search.settled.load(Ordering::Acquire) || search.leaving.load(Ordering::Relaxed) {
            return;
        }
        // One vCPU searches. Of a guest that was loaded others may run as well, and wait here until it is known what to watch in
        // their blocks: nobody who searches needs them to go on.
        let symbols = self.symbols.lock();
        if search.settled.load(Ordering::Acquire) {
            return;
        }
        let n = search.kernel_blocks.fetch_add(1, Ordering::Relaxed);
        // Soon again at first: the first block may have been a module's.
        if n != 0 && !n.is_power_of_two() {
            return;
        }
        match self.find(block, start, symbols.as_ref()) {
            Ok(has_run) => {
                search.settled.store(true, Ordering::Relaxed);
                // It may have been tracked as another boot: firmware goes on with a suspended kernel after a reset, too.
                if n > 0 || has_run {
                    log::info!("blocks of the kernel were translated before: all are translated again");
                    host::flush_translations();
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
                output::error(&why);
                search.settled.store(true, Ordering::Relaxed);
                *self.failure.lock() = Some(why);
            }
        }
    }

    /// Looks for the kernel that this block belongs to. Says whether it has run before.
    fn find(&self, block: Block, start: u64, symbols: Option<&SymbolFile>) -> Result<bool, NotFound> {
        let began = Instant::now();
        let code = block.insn(0).map_or(std::ptr::null(), |i| i.host_address());
        let ram = Ram::find(code).map_err(|e| NotFound::Never(e.to_string()))?;
        let phys = ram
            .phys_of(code)
            .ok_or_else(|| NotFound::NotYet(format!("the kernel block at {start:#x} is not in RAM")))?;
        let kernel = {
            // SAFETY: as far as anyone can tell this is the first block of a kernel, so the boot CPU is the only
            // one that runs, and it is here. Should another run after all, as in a guest that was loaded, it would be
            // writing kernel data, not the read-only data that is searched.
            #[expect(unsafe_code, reason = "says that the guest stands still")]
            let memory = unsafe { ram.stopped() };
            // Types may be read from a file, by threads that are started for that.
            let found = signals::while_blocked(|| Kernel::find(&memory, VirtAddr(start), phys, symbols));
            self.beside.complete(found, &memory, (VirtAddr(start), phys)).map_err(|(e, notes)| match e {
                KernelError::NotLinux(_) => NotFound::NotYet(e.to_string()),
                e => NotFound::Never(format!("{e}{notes}")),
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
            output::warning(&format!("{why}; without it, frames of the kernel have no source lines"));
        }
        let wanted =
            Wanted { pages: self.options.pages, markers: self.options.guest_markers, console: self.options.ktap };
        let boot = self.search.boots.fetch_add(1, Ordering::Relaxed) + 1;
        let has_run = joined::has_run(&kernel, &ram) || self.search.kernel_blocks.load(Ordering::Relaxed) > 1;
        let kept = Kept { frames: self.options.frames, objects: self.options.max_objects };
        let (mut tracker, missing) = Tracker::new(kernel, ram, wanted, kept, boot);
        if has_run {
            tracker.join();
        }
        if !missing.is_empty() {
            let trouble = Trouble::NoHook(missing);
            output::warning(&format!("{trouble}, and the report is not to be trusted"));
            tracker.troubles.enter(&trouble);
        }
        current::set(Some(tracker));
        log::info!("ready {:?} after the first kernel block", began.elapsed());
        Ok(has_run)
    }

    /// What is tracked.
    ///
    /// # Errors
    /// The line to print if there is nothing, or nothing that a scan would be right about.
    pub fn tracked(&self) -> Result<Arc<Tracker>, String> {
        match panics::halted() {
            Some(_) => Err(OFF.to_owned()),
            None => self.known(),
        }
    }

    /// What was tracked, whether or not it still is.
    fn known(&self) -> Result<Arc<Tracker>, String> {
        let Some(tracker) = current::tracker() else {
            let why = self.failure.lock().clone();
            return Err(match why {
                _ if !self.search.blocks.load(Ordering::Relaxed) => "QEMU translated no guest code, so nothing was tracked: the guest ran under KVM or another accelerator, or not at all; use -accel tcg".to_owned(),
                Some(why) => format!("nothing was tracked: {why}"),
                None if self.is_between() => "no kernel runs in the guest now: it is starting again".to_owned(),
                None => "nothing was tracked: no Linux kernel ran in the guest".to_owned(),
            });
        };
        if tracker.is_replaced() {
            return Err(format!("no result: {RESET}"));
        }
        if tracker.live.counters().allocations == 0 {
            return Err(format!(
                "nothing was tracked: Linux {} was found, but it ended before its first allocation, or none of its allocators is known",
                tracker.kernel.release
            ));
        }
        Ok(tracker)
    }

    /// QEMU exits: the vCPUs have stopped.
    pub fn exit(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.take_up_loaded();
        self.conclude(true);
    }

    /// Makes what was known when a panic ended the tracking ready for one more check. What happened in the guest since is not
    /// known: the kernel's own books say what is still allocated, and they must be of the same run of the same kernel.
    fn take_up(&self, tracker: &Tracker, since: Instant) -> Result<(), &'static str> {
        let before = tracker.rewinds();
        tracker.check_time(false);
        if tracker.rewinds() > before {
            return Err("the guest has gone back in time, or started again");
        }
        let banner = tracker.kernel.symbols.lookup("linux_banner").map(VirtAddr);
        let banner = banner.map(|at| tracker.kernel.read_string(&tracker.ram, at, MAX_BANNER));
        if banner.is_some_and(|banner| !banner.contains(&tracker.kernel.release)) {
            return Err("another kernel runs since");
        }
        tracker.troubles.enter(&Trouble::Halted(since.elapsed().as_secs()));
        Ok(())
    }

    /// Whether QEMU exits.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// The age below which scans that somebody asks for report nothing, unless he says otherwise.
    pub fn asked_min_age(&self) -> Duration {
        self.options.min_age.unwrap_or_default()
    }

    /// The age below which interval scans report nothing.
    pub fn interval_min_age(&self) -> Duration {
        self.options.min_age.unwrap_or(INTERVAL_MIN_AGE)
    }
}

/// Why there is no kernel.
enum NotFound {
    /// Another block may do.
    NotYet(String),
    /// No block will.
    Never(String),
}
