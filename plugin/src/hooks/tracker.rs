//! The hot path: what happens when a hooked function is entered, and when it returns.
//!
//! A call in progress is known by the stack slot of its return address, which no other call can use until
//! it has returned, on whatever CPU that happens. A return is recognised when the instruction at the return
//! address is about to execute with the stack pointer just above that slot: this holds across tail calls,
//! return thunks, interrupts that allocate, sleeping and migration.
//!
//! Which return addresses need watching is mostly known when they are translated ([`super::callsite`]). The
//! rest is learnt: on entry the return address is looked up, and where it is not watched yet but also not
//! translated yet, it will be watched when it is.

use super::callsite::{CallSites, LONGEST_CALL, Returns};
use super::code::Code;
use super::context::Context;
use super::events::{RECENT_VFREES, ZERO_SIZE_PTR};
use super::says::Says;
use super::stack::Times;
use super::table::{self, Action, Hook, LATER, PORT, Wanted};
use super::watches::{Watch, Watches};
use crate::ffi::api::{Block, Flag, Insn};
use crate::ffi::guard;
use crate::ffi::ram::Ram;
use crate::ffi::regs::{self, Reg};
use crate::triggers::{console, marker};
use dashmap::DashMap;
use detector::clock::Clock;
use detector::comms::Comms;
use detector::frozen::Objects;
use detector::guest_tests::Tests;
use detector::objects::{AddressHasher, Kind, LiveMap, Removed};
use detector::stacks::Stacks;
use guest_symbols::Kernel;
use guest_symbols::kernel::START_KERNEL_MAP;
use guest_symbols::memory::{GuestMemory, PAGE_SIZE, StoppedMemory, VirtAddr};
use guest_symbols::modules::Module;
use libc::{c_uint, c_void};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

pub(super) type AddressMap<V> = DashMap<u64, V, BuildHasherDefault<AddressHasher>>;

/// Room for live objects from the start. More is made as it is needed: the denser the table, the more of it is in caches.
const LIVE_CAPACITY: usize = 1 << 12;
/// The largest block of pages: MAX_PAGE_ORDER (include/linux/mmzone.h).
const MAX_ORDER: u64 = 10;

/// A call in progress.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    pub(super) hook: u32,
    /// Its return address is watched only while the flag is up.
    pub(super) armed: bool,
    /// Its return address was not watched when it was last translated. It is still seen if it is translated
    /// again first, as it is where another module's code was before.
    doubtful: bool,
    pub(super) ret: u64,
    /// The number of the next object when the function was entered.
    pub(super) sequence: u64,
    /// Size, or count.
    pub(super) size: u64,
    array: u64,
}

/// Pages as they were given out.
pub struct Pages {
    /// By address in the direct map.
    pub map: LiveMap,
    /// Bytes of a page descriptor.
    pub(super) descriptor: u64,
}

/// Events that should not happen, counted.
#[derive(Debug, Default)]
pub struct Doubts {
    /// Calls whose return was not seen, because another call came to use the same stack slot.
    pub unmatched_returns: AtomicU64,
    /// Calls that return, or have returned, where nothing watches.
    pub unwatched_returns: AtomicU64,
    /// Stacks or arrays that could not be read.
    pub unreadable: AtomicU64,
}

/// What was seen of a hook.
#[derive(Debug, Default)]
pub struct Seen {
    /// It was entered.
    pub hit: AtomicBool,
    /// It returned what another inside had allocated.
    pub(super) wraps: AtomicBool,
}

/// Everything that is known of a guest whose kernel has been found.
pub struct Tracker {
    /// The kernel.
    pub kernel: Kernel,
    /// Its RAM.
    pub ram: Ram,
    /// Live objects.
    pub live: LiveMap,
    /// With `pages=on`, pages as they were given out last; those that were given back are among them.
    pub pages: Option<Pages>,
    /// Allocation stacks.
    pub stacks: Stacks,
    /// Names of tasks.
    pub(super) comms: Comms,
    /// The guest's time and the host's.
    pub(super) clock: Clock,
    /// Parts of stacks, from the allocator to a frame pointer, for walks that are known.
    pub(super) parts: Stacks,
    /// The tests that the guest runs.
    pub tests: Mutex<Tests>,
    /// Where what the guest says is found.
    pub says: Says,
    /// What went wrong.
    pub doubts: Doubts,
    /// Modules as they were loaded, each with the sequence number of that moment.
    modules: Mutex<Vec<(u64, Arc<Module>)>>,
    /// Functions watched, and what was seen of each.
    pub hooks: Vec<(Hook, Seen)>,
    entries: HashMap<u64, u32>,
    entry_range: std::ops::RangeInclusive<u64>,
    sites: CallSites,
    pub(crate) context: Context,
    pub(super) code: Code,
    /// How long unwinding takes, if somebody wants to know.
    pub times: Option<Times>,
    /// Frames kept of each stack.
    pub(super) frames: usize,
    pub(super) pending: AddressMap<Pending>,
    watched: AddressMap<Watch>,
    watches: Watches,
    armed: Mutex<u64>,
    /// The address of [`PORT`] in a module; 0 for none.
    port: AtomicU64,
    flag: Flag,
    pub(super) sequence: AtomicU64,
    pub(super) vfreed: Mutex<VecDeque<u64>>,
    start: Instant,
    /// Virtual range of the kernel's image.
    image: std::ops::Range<u64>,
    /// Another kernel runs, in another place: after a reset, or by kexec.
    pub(super) replaced: AtomicBool,
    /// The latest jiffies seen: they go back only when a kernel starts again or a snapshot is loaded.
    pub(super) jiffies: AtomicU64,
    pub(super) rewinds: AtomicU64,
}

/// Kernel images lie below the modules: MODULES_VADDR with KASLR (arch/x86/include/asm/pgtable_64_types.h).
const MODULES: u64 = 0xffff_ffff_c000_0000;

static TRACKER: OnceLock<Tracker> = OnceLock::new();

/// The tracker, once there is one.
#[inline]
pub fn tracker() -> Option<&'static Tracker> {
    TRACKER.get()
}

impl Tracker {
    /// Chooses hooks for the kernel and makes this the process's tracker. `memory` is `ram`, stopped.
    ///
    /// Returns the families of functions that the kernel has none of.
    pub fn install(kernel: Kernel, ram: Ram, wanted: Wanted, frames: usize) -> Vec<&'static str> {
        let (hooks, missing) = table::choose(&kernel, wanted);
        let descriptor = kernel.btf.as_ref().and_then(|b| b.size_of("page")).filter(|_| wanted.pages);
        let (sites, code) = {
            // SAFETY: the kernel has just executed its first block, on the only vCPU that runs, which is in our
            // translation callback now.
            let memory = unsafe { ram.stopped() };
            (analyse_calls(&kernel, &memory, &hooks), Code::new(&kernel, &memory))
        };
        let addresses = hooks.iter().map(|h| h.addr).filter(|&addr| addr != LATER);
        let low = addresses.clone().min().unwrap_or(u64::MAX);
        let high = addresses.max().unwrap_or(0);
        let tracker = Tracker {
            entries: hooks.iter().enumerate().map(|(i, h)| (h.addr, i as u32)).collect(),
            entry_range: low..=high,
            context: Context::new(&kernel),
            code,
            times: log::log_enabled!(log::Level::Info).then(Times::default),
            frames,
            image: kernel.symbols.lookup("_text").unwrap_or(0)..kernel.symbols.lookup("_end").unwrap_or(u64::MAX),
            tests: Mutex::default(),
            says: Says::new(&kernel),
            replaced: AtomicBool::new(false),
            jiffies: AtomicU64::new(0),
            rewinds: AtomicU64::new(0),
            kernel,
            ram,
            live: LiveMap::with_capacity(LIVE_CAPACITY),
            pages: descriptor.map(|descriptor| Pages { map: LiveMap::with_capacity(LIVE_CAPACITY), descriptor }),
            stacks: Stacks::default(),
            parts: Stacks::default(),
            comms: Comms::default(),
            clock: Clock::default(),
            doubts: Doubts::default(),
            modules: Mutex::default(),
            hooks: hooks.into_iter().map(|h| (h, Seen::default())).collect(),
            sites,
            pending: DashMap::with_capacity_and_hasher(4096, Default::default()),
            watched: DashMap::with_capacity_and_hasher(1 << 16, Default::default()),
            watches: Watches::default(),
            armed: Mutex::new(0),
            port: AtomicU64::new(0),
            flag: Flag::default(),
            sequence: AtomicU64::new(1),
            vfreed: Mutex::new(VecDeque::with_capacity(RECENT_VFREES)),
            start: Instant::now(),
        };
        let _ = TRACKER.set(tracker);
        missing
    }

    /// Every live object, ascending by address; with `pages=on`, pages too, at whose address there may be an object as well.
    pub fn objects(&self) -> Objects {
        let maps: Vec<&LiveMap> = [&self.live].into_iter().chain(self.pages.as_ref().map(|p| &p.map)).collect();
        let jiffies = self.jiffies.load(Ordering::Relaxed).max(self.context.jiffies(&self.ram));
        Objects::of(&maps, &self.comms, &self.clock, (jiffies, self.millis()))
    }

    /// Modules as they were loaded until now, each with the sequence number of that moment. They are lent to nobody: the
    /// guest loads more meanwhile.
    pub fn modules(&self) -> Vec<(u64, Arc<Module>)> {
        self.modules.lock().clone()
    }

    /// Remembers that an object was reported.
    pub fn set_reported(&self, addr: u64, kind: Kind) {
        match (kind, &self.pages) {
            (Kind::Pages, Some(pages)) => pages.map.set_reported(addr),
            _ => self.live.set_reported(addr),
        }
    }

    /// Milliseconds of host time since tracking began.
    pub fn millis(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Whether the kernel that is tracked is gone: nothing that is known holds any more.
    pub fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// How often the guest went back in time.
    pub fn rewinds(&self) -> u64 {
        self.rewinds.load(Ordering::Relaxed)
    }

    /// The sequence number that comes next: every object that is live now has a lesser one.
    pub fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Relaxed)
    }

    /// Calls that have not returned.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Watches what is to be watched in a block of the kernel that is being translated.
    pub fn translate(&self, block: Block) {
        let (count, start) = (block.len(), block.vaddr());
        let (Some(first), Some(last)) = (block.insn(0), block.insn(count.wrapping_sub(1))) else { return };
        let last = last.vaddr();
        if (START_KERNEL_MAP..MODULES).contains(&start) && !self.image.contains(&start) {
            self.replaced.store(true, Ordering::Relaxed);
        }
        if start <= *self.entry_range.end() && last >= *self.entry_range.start() {
            for insn in (0..count).filter_map(|i| block.insn(i)) {
                if let Some(&hook) = self.entries.get(&insn.vaddr()) {
                    insn.on_exec(on_entry, hook as usize);
                }
            }
        }
        let port = self.port.load(Ordering::Relaxed);
        if (start..=last).contains(&port)
            && let Some(insn) = (0..count).filter_map(|i| block.insn(i)).find(|insn| insn.vaddr() == port)
            && let Some(hook) = self.hooks.iter().position(|(h, _)| h.name == PORT && h.addr == LATER)
        {
            insn.on_exec(on_entry, hook);
        }
        let returns = self.before(first, start).map_or(Returns::Anything, |b| self.sites.classify(start, &b));
        let mut watch = match returns {
            Returns::Allocator => Watch::Always,
            Returns::Anything => Watch::WhileArmed,
            Returns::Other => Watch::Never,
            Returns::NoCall => return,
        };
        // Translated again, it may have been learnt meanwhile.
        if self.watched.get(&start).is_some_and(|w| matches!(*w, Watch::Wanted | Watch::Always)) {
            watch = Watch::Always;
        }
        if self.watched.insert(start, watch) != Some(watch) {
            self.watches.change();
        }
        match watch {
            Watch::Always => first.on_exec(on_return, start as usize),
            Watch::WhileArmed => first.on_exec_if(self.flag, on_return, start as usize),
            Watch::Never | Watch::Wanted => {}
        }
    }

    /// The bytes before the block.
    fn before(&self, first: Insn, start: u64) -> Option<[u8; LONGEST_CALL]> {
        let mut bytes = [0; LONGEST_CALL];
        let phys = self.ram.phys_of(first.host_address())?;
        if start % PAGE_SIZE >= LONGEST_CALL as u64 {
            let at = guest_symbols::PhysAddr(phys.0 - LONGEST_CALL as u64);
            self.ram.read(at, &mut bytes).ok()?;
        } else {
            let at = VirtAddr(start - LONGEST_CALL as u64);
            self.kernel.read(&self.ram, at, &mut bytes).ok()?;
        }
        Some(bytes)
    }

    fn enter(&self, vcpu: c_uint, number: u32) {
        let (hook, seen) = &self.hooks[number as usize];
        // Written once, since all CPUs read it all the time.
        if !seen.hit.load(Ordering::Relaxed) {
            seen.hit.store(true, Ordering::Relaxed);
        }
        match hook.action {
            Action::Alloc(_, size) => self.begin(number, size.map_or(0, regs::read), 0),
            Action::AllocPages(order) => self.begin(number, PAGE_SIZE << order.map_or(0, regs::read).min(MAX_ORDER), 0),
            Action::AllocPagesBulk(array) => self.begin(number, PAGE_SIZE, regs::read(array)),
            Action::AllocBulk(count, array, _) => self.begin(number, regs::read(count), regs::read(array)),
            Action::Free(object) => self.free(regs::read(object)),
            Action::FreeVmalloc(addr) => self.free_vmalloc(regs::read(addr)),
            Action::FreeBulk(count, array) => {
                let (count, array) = (regs::read(count), regs::read(array));
                self.array(array, count, |object| self.free(object));
            }
            Action::FreeRcu(head, object) => {
                let (head, object) = (regs::read(head), regs::read(object));
                // To 6.11 the second argument is the rcu_head's offset, but for a NULL head the object.
                let object = if object < PAGE_SIZE { head.wrapping_sub(object) } else { object };
                if object > ZERO_SIZE_PTR && self.live.retire(object) == Removed::Unknown {
                    self.unknown_free(object);
                }
            }
            Action::ModuleLoad(module) => {
                self.loaded(Module::read(&self.kernel, &self.ram, VirtAddr(regs::read(module))));
            }
            Action::BpfSymbol(symbol) => {
                self.loaded(Module::read_bpf(&self.kernel, &self.ram, VirtAddr(regs::read(symbol))));
            }
            Action::WriteComm(buf, count) => marker::comm(self, vcpu, regs::read(buf), regs::read(count)),
            Action::SetComm => marker::comm_copied(self, vcpu),
            Action::WriteKmsg(from) => marker::kmsg(self, vcpu, regs::read(from)),
            Action::Printk(entry) => {
                let entry = regs::read(entry);
                marker::kmsg_copied(self, vcpu, entry);
                console::printk(self, vcpu, entry);
            }
            Action::PrintkPart(entry) => marker::kmsg_copied(self, vcpu, regs::read(entry)),
            Action::WriteTty(tty, buf, count) => {
                console::tty(self, vcpu, regs::read(tty), regs::read(buf), regs::read(count));
            }
            Action::WritePort(buf, count) => console::port(self, vcpu, regs::read(buf), regs::read(count)),
        }
    }

    /// Code has come that is not the kernel's own.
    fn loaded(&self, module: Option<Module>) {
        let Some(module) = module else { return };
        log::debug!("module {:?} with {} symbols", module.name, module.symbol_count());
        self.code.add(&module);
        if let Some(symbol) = module.symbols().find(|s| s.name == PORT) {
            self.port.store(symbol.addr, Ordering::Relaxed);
        }
        self.modules.lock().push((self.sequence.load(Ordering::Relaxed), Arc::new(module)));
    }

    /// An allocator was entered.
    fn begin(&self, hook: u32, size: u64, array: u64) {
        let rsp = regs::read(Reg::Rsp);
        let Ok(ret) = self.kernel.view(&self.ram).read_u64(VirtAddr(rsp)) else {
            self.doubts.unreadable.fetch_add(1, Ordering::Relaxed);
            return;
        };
        // Jumped to by a function that a tracer watches: its handler jumps on to the original address.
        let ret = if self.code.is_tracer(ret) { self.untraced(ret, rsp) } else { ret };
        let watch = self.watches.get(ret, || self.watched.get(&ret).map(|w| *w));
        let (armed, doubtful) = (watch == Some(Watch::WhileArmed), watch == Some(Watch::Never));
        if doubtful {
            log::debug!("unwatched return to {ret:#x} from {}", self.hooks[hook as usize].0.name);
            self.doubts.unwatched_returns.fetch_add(1, Ordering::Relaxed);
        }
        if doubtful || watch.is_none() {
            self.watched.insert(ret, Watch::Wanted);
            self.watches.change();
        }
        let sequence = self.sequence.load(Ordering::Relaxed);
        let old = self.pending.insert(rsp, Pending { hook, armed, doubtful, ret, sequence, size, array });
        if armed {
            self.arm(1);
        }
        if let Some(old) = old {
            if old.armed {
                self.arm(-1);
            }
            // The same slot and return address: the instruction was restarted, or the allocator
            // tail-called another, which returns in its place.
            if old.ret != ret {
                log::debug!("unmatched return of {} to {:#x}", self.hooks[old.hook as usize].0.name, old.ret);
                self.doubts.unmatched_returns.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Raises or lowers the flag that conditional watches look at.
    pub(super) fn arm(&self, by: i64) {
        let mut armed = self.armed.lock();
        let before = *armed;
        *armed = before.saturating_add_signed(by);
        if (before == 0) != (*armed == 0) {
            self.flag.set((*armed != 0).into());
        }
    }

    /// The instruction at `ret` is about to execute.
    fn finish(&self, ret: u64) {
        let slot = regs::read(Reg::Rsp).wrapping_sub(8);
        let Some((_, pending)) = self.pending.remove_if(&slot, |_, p| p.ret == ret) else { return };
        if pending.armed {
            self.arm(-1);
        }
        if pending.doubtful {
            self.doubts.unwatched_returns.fetch_sub(1, Ordering::Relaxed);
        }
        let (hook, seen) = &self.hooks[pending.hook as usize];
        let rax = regs::read(Reg::Rax);
        // Nothing came of it, or nothing new.
        if rax == 0 || seen.wraps.load(Ordering::Relaxed) && self.live.is_inside(rax, pending.sequence) {
            return;
        }
        let stack = self.stack(hook.addr, ret, slot.wrapping_add(8));
        match hook.action {
            Action::Alloc(kind, _) => self.allocated(rax, kind, pending, stack),
            Action::AllocPages(_) => self.allocated(rax, Kind::Pages, pending, stack),
            Action::AllocPagesBulk(_) => {
                self.array(pending.array, rax, |page| self.allocated(page, Kind::Pages, pending, stack))
            }
            Action::AllocBulk(_, _, boolean) => {
                let result = if boolean { rax & 0xff } else { rax & 0xffff_ffff };
                if result != 0 {
                    self.array(pending.array, pending.size, |object| {
                        self.allocated(object, Kind::Slab, pending, stack)
                    });
                }
            }
            _ => {}
        }
    }
}

fn analyse_calls(kernel: &Kernel, memory: &impl StoppedMemory, hooks: &[Hook]) -> CallSites {
    let text = kernel.symbols.lookup("_stext").unwrap_or(0)..kernel.symbols.lookup("_etext").unwrap_or(0);
    let functions: Vec<u64> = kernel
        .symbols
        .iter()
        .filter(|s| matches!(s.kind, b't' | b'T' | b'W' | b'w') && text.contains(&s.addr))
        .map(|s| s.addr)
        .collect();
    let is_trampoline = |name: &str| name.starts_with("__x86_indirect_") || name.starts_with("__SCT__");
    let trampolines: Vec<u64> = kernel.symbols.iter().filter(|s| is_trampoline(s.name)).map(|s| s.addr).collect();
    let allocators: Vec<u64> = hooks.iter().filter(|h| h.action.allocates()).map(|h| h.addr).collect();
    let bytes = memory.run(kernel.image_phys(VirtAddr(text.start)), text.end.saturating_sub(text.start) as usize);
    CallSites::new(bytes, text, &functions, &allocators, &trampolines)
}

extern "C" fn on_entry(vcpu: c_uint, hook: *mut c_void) {
    guard(|| {
        if let Some(tracker) = tracker() {
            tracker.enter(vcpu, hook as usize as u32);
        }
    });
}

extern "C" fn on_return(_vcpu: c_uint, ret: *mut c_void) {
    guard(|| {
        if let Some(tracker) = tracker() {
            tracker.finish(ret as u64);
        }
    });
}
