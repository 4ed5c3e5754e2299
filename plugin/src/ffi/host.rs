//! Functions of QEMU beyond the plugin API. Builds with loadable modules, as distributions make them, export
//! every function; others export the plugin API alone. Each use therefore has a way without.

use super::api;
use super::job::Job;
use libc::{c_char, c_int, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A function of QEMU, where this build exports it.
pub fn function(name: &str) -> Option<*mut c_void> {
    api::lookup(name)
}

/// A block of guest RAM as QEMU keeps it.
#[derive(Debug, Clone)]
pub struct RamBlock {
    /// QEMU's name: `pc.ram`, `mem0`.
    pub name: String,
    /// Host address.
    pub host: usize,
    /// Bytes.
    pub len: usize,
}

/// Every RAM block, video and option ROMs included; empty where QEMU does not export the functions.
pub fn ram_blocks() -> Vec<RamBlock> {
    type Each = extern "C" fn(*mut c_void, *mut c_void) -> c_int;
    type Foreach = unsafe extern "C" fn(Each, *mut c_void) -> c_int;
    struct Out {
        blocks: Vec<RamBlock>,
        idstr: unsafe extern "C" fn(*mut c_void) -> *const c_char,
        host: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
        len: unsafe extern "C" fn(*mut c_void) -> u64,
    }
    extern "C" fn each(block: *mut c_void, opaque: *mut c_void) -> c_int {
        // SAFETY: `opaque` is the `Out` below, alive and not otherwise used during the walk; `block` is a
        // RAMBlock that QEMU keeps alive for the call.
        super::guard(|| unsafe {
            let out = &mut *opaque.cast::<Out>();
            out.blocks.push(RamBlock {
                name: api::string((out.idstr)(block)),
                host: (out.host)(block) as usize,
                len: (out.len)(block) as usize,
            });
        });
        0
    }
    let names = ["qemu_ram_foreach_block", "qemu_ram_get_idstr", "qemu_ram_get_host_addr", "qemu_ram_get_used_length"];
    let [Some(foreach), Some(idstr), Some(host), Some(len)] = names.map(function) else { return Vec::new() };
    // SAFETY: the signatures are those of include/exec/cpu-common.h, QEMU 9.2 to 11.1.
    unsafe {
        let mut out = Out {
            blocks: Vec::new(),
            idstr: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void) -> *const c_char>(idstr),
            host: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void) -> *mut c_void>(host),
            len: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void) -> u64>(len),
        };
        let foreach: Foreach = std::mem::transmute(foreach);
        foreach(each, (&raw mut out).cast());
        out.blocks
    }
}

/// Has QEMU call `f` with the host address and the length in bytes of each RAM block that it is about to free, for ever. Only
/// while QEMU starts, on its main thread. Where QEMU does not export the function, `f` is never called.
pub fn on_ram_removed(f: fn(usize, usize)) {
    static FUNCTION: std::sync::OnceLock<fn(usize, usize)> = std::sync::OnceLock::new();
    extern "C" fn removed(_notifier: *mut c_void, host: *mut c_void, size: usize, most: usize) {
        super::guard(|| {
            if let Some(f) = FUNCTION.get() {
                f(host as usize, size.max(most));
            }
        });
    }
    let Some(add) = function("ram_block_notifier_add") else { return };
    if FUNCTION.set(f).is_err() {
        return;
    }
    // `struct RAMBlockNotifier` (include/exec/ramlist.h, QEMU 9.2 to 11.1): functions for blocks that are added, removed and
    // resized, none of which must be there, and the links of a list. There is room for functions to come.
    let notifier: Box<[usize; 16]> =
        Box::new(std::array::from_fn(|i| if i == 1 { removed as *const () as usize } else { 0 }));
    // SAFETY: `void ram_block_notifier_add(RAMBlockNotifier *)` links it into a list that is the main thread's; it is never
    // freed. `removed` has the signature of `ram_block_removed`.
    unsafe {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(add)(Box::into_raw(notifier).cast());
    }
}

/// This thread, one of ours, as one that QEMU's RCU knows, until this is dropped.
pub struct Registered(());

/// Makes this thread known to QEMU's RCU.
pub fn register_thread() -> Registered {
    call("rcu_register_thread");
    Registered(())
}

impl Drop for Registered {
    fn drop(&mut self) {
        call("rcu_unregister_thread");
    }
}

fn call(name: &str) {
    if let Some(function) = function(name) {
        // SAFETY: functions of the form `void f(void)`, `rcu_register_thread` and `rcu_unregister_thread` (include/qemu/rcu.h) and
        // `cpu_list_lock` and `cpu_list_unlock` (include/exec/cpu-common.h), each once by a thread, in this order.
        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(function)() };
    }
}

/// Where guest physical memory from `at` on is mapped, and how far in one run; `None` for anything but RAM,
/// and where QEMU does not export the functions. Only on a vCPU's thread, which QEMU's RCU knows.
pub fn map_physical(at: u64) -> Option<(usize, u64)> {
    type Map = unsafe extern "C" fn(*mut c_void, u64, *mut u64, bool, u64) -> *mut c_void;
    type Unmap = unsafe extern "C" fn(*mut c_void, *mut c_void, u64, bool, u64);
    let [Some(map), Some(unmap), Some(space)] =
        ["address_space_map", "address_space_unmap", "address_space_memory"].map(function)
    else {
        return None;
    };
    let mut len = 1 << 40;
    // SAFETY: signatures of include/exec/memory.h, QEMU 9.2 to 11.1; MemTxAttrs is a struct of at most
    // 8 bytes, passed in one register, and all zeroes is a plain access. `address_space_memory` is the system
    // address space itself. What is mapped is unmapped at once: RAM stays where it is.
    let host = unsafe {
        let map: Map = std::mem::transmute(map);
        let unmap: Unmap = std::mem::transmute(unmap);
        let host = map(space, at, &mut len, false, 0);
        if !host.is_null() {
            unmap(space, host, len, false, 0);
        }
        host
    };
    (!host.is_null() && len > 0).then_some((host as usize, len))
}

/// A vCPU's CPUState; QEMU frees none before the process ends, but for hot unplug.
#[derive(Clone, Copy)]
pub struct Cpu(*mut c_void);

impl Cpu {
    pub(super) fn pointer(self) -> *mut c_void {
        self.0
    }
}

/// vCPU `index`.
pub fn cpu(index: usize) -> Option<Cpu> {
    let get = function("qemu_get_cpu")?;
    // SAFETY: `CPUState *qemu_get_cpu(int index)` (include/hw/core/cpu.h); it searches a list.
    let cpu =
        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int) -> *mut c_void>(get)(index as c_int) };
    (!cpu.is_null()).then_some(Cpu(cpu))
}

/// Gives all vCPUs, of which none is unplugged meanwhile.
pub fn with_cpus<T>(f: impl FnOnce(&[Cpu]) -> T) -> T {
    /// The list of vCPUs, locked; a vCPU that is unplugged is taken out of it before it is freed (cpu_exec_unrealizefn()).
    struct Locked;
    impl Drop for Locked {
        fn drop(&mut self) {
            call("cpu_list_unlock");
        }
    }
    call("cpu_list_lock");
    let _locked = Locked;
    // SAFETY: it takes nothing and gives a number.
    let most = unsafe { (api::api().num_vcpus)() }.max(0) as usize;
    f(&(0..most).filter_map(cpu).collect::<Vec<_>>())
}

/// The mapping of this process that contains `host`: its start and end.
pub fn mapping_of(host: usize) -> Option<(usize, usize)> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        range.contains(&host).then_some((range.start, range.end))
    })
}

/// The version of the QEMU that runs, from the text in its own program file: (11, 1).
pub fn qemu_version() -> Option<(u32, u32)> {
    const TEXT: &[u8] = b"QEMU emulator version ";
    let program = std::fs::read(Path::new("/proc/self/exe")).ok()?;
    let at = memchr::memmem::find(&program, TEXT)? + TEXT.len();
    let text = std::str::from_utf8(program.get(at..at + 8)?).ok()?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Runs `f` while no vCPU executes anything, on the thread of vCPU `index`, before that executes another block: QEMU looks
/// at a vCPU's work when a block ends. To be called in a callback of that vCPU, which must return for it.
///
/// # Errors
/// Why not, in words.
pub fn exclusive_after(index: usize, f: Box<dyn FnOnce() + Send>) -> Result<(), &'static str> {
    type F = Box<dyn FnOnce() + Send>;
    extern "C" fn work(_cpu: *mut c_void, data: u64) {
        // SAFETY: `data` is the box that was given away below; QEMU runs work once.
        let f = unsafe { Box::from_raw(data as *mut F) };
        super::guard(f);
    }
    let run = function("async_safe_run_on_cpu").ok_or("this QEMU does not export async_safe_run_on_cpu")?;
    let cpu = cpu(index).ok_or("QEMU does not know the vCPU")?;
    // SAFETY: as in `exclusive`. With thread=single the index may be of another vCPU; they all share one thread then, and
    // work for any of them stops it.
    unsafe {
        let run: unsafe extern "C" fn(*mut c_void, extern "C" fn(*mut c_void, u64), u64) = std::mem::transmute(run);
        run(cpu.pointer(), work, Box::into_raw(Box::new(f)) as u64);
    }
    Ok(())
}

/// Has QEMU throw away all that it has translated, before this vCPU executes another block. In a callback of a vCPU.
pub fn flush_translations() {
    type Run = unsafe extern "C" fn(*mut c_void, extern "C" fn(*mut c_void, u64), u64);
    extern "C" fn work(cpu: *mut c_void, _: u64) {
        super::guard(|| {
            // SAFETY: `void tb_flush__exclusive_or_serial(void)` from QEMU 10.2 on, `void tb_flush(CPUState *)` before
            // (include/exec/tb-flush.h): in an exclusive section, as here, both do it at once.
            unsafe {
                if let Some(flush) = function("tb_flush__exclusive_or_serial") {
                    std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(flush)();
                } else if let Some(flush) = function("tb_flush") {
                    std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(flush)(cpu);
                }
            }
        });
    }
    if let (Some(run), Some(cpu)) = (function("async_safe_run_on_cpu"), super::direct::current()) {
        // SAFETY: as in `exclusive`; the vCPU is the one in whose callback this is.
        unsafe { std::mem::transmute::<*mut c_void, Run>(run)(cpu, work, 0) };
    }
}

/// Lets a guest go on that was stopped by a monitor which does not answer any more. It does so by itself as soon as it can, and
/// nothing happens if it runs.
///
/// # Errors
/// Why not, in words.
pub fn resume() -> Result<(), &'static str> {
    extern "C" fn work(_cpu: *mut c_void, _data: u64) {
        let _ = super::panics::always(|| {
            if let Some(start) = function("vm_start") {
                // SAFETY: `void vm_start(void)` (include/sysemu/runstate.h, system/runstate.h from 10.0 on), which needs QEMU's big
                // lock: QEMU holds it when it runs a vCPU's work.
                unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(start)() }
            }
        });
    }
    let run = function("async_run_on_cpu").ok_or("this QEMU does not export async_run_on_cpu")?;
    function("vm_start").ok_or("this QEMU does not export vm_start")?;
    let cpu = cpu(0).ok_or("QEMU has no vCPU 0")?;
    // SAFETY: `void async_run_on_cpu(CPUState *, run_on_cpu_func, run_on_cpu_data)`, as in `exclusive` below. A vCPU that is
    // stopped looks at its work too (qemu_wait_io_event, system/cpus.c).
    unsafe {
        let run: unsafe extern "C" fn(*mut c_void, extern "C" fn(*mut c_void, u64), u64) = std::mem::transmute(run);
        run(cpu.pointer(), work, 0);
    }
    Ok(())
}

/// Runs `f` while no vCPU executes anything, on a vCPU's thread, and waits for it at most `timeout`.
///
/// # Errors
/// Why not, in words.
pub fn exclusive(f: Box<dyn FnOnce() + Send>, timeout: std::time::Duration) -> Result<(), &'static str> {
    type Work = extern "C" fn(*mut c_void, u64);
    type AsyncSafeRun = unsafe extern "C" fn(*mut c_void, Work, u64);
    extern "C" fn work(_cpu: *mut c_void, data: u64) {
        // SAFETY: `data` is the Arc that was given away below, taken back exactly once.
        let job = unsafe { Arc::from_raw(data as *const Job) };
        super::guard(|| job.run());
        job.done();
    }
    let run = function("async_safe_run_on_cpu").ok_or("this QEMU does not export async_safe_run_on_cpu")?;
    let cpu = cpu(0).ok_or("QEMU has no vCPU 0")?;
    let (job, wait) = Job::new(f);
    // SAFETY: `void async_safe_run_on_cpu(CPUState *, run_on_cpu_func, run_on_cpu_data)`, where
    // run_on_cpu_data is a union of 8 bytes (include/hw/core/cpu.h); callable from any thread.
    unsafe {
        let run: AsyncSafeRun = std::mem::transmute(run);
        run(cpu.pointer(), work, Arc::into_raw(job.clone()) as u64);
    }
    if job.has_run(&wait, timeout) { Ok(()) } else { Err("the vCPUs did not stop in time") }
}

/// Whether no other libleak is loaded in this process: also not another file, which would have statics of its own. Only while
/// QEMU starts, on its main thread.
pub fn claim_process() -> bool {
    const NAME: &str = "LIBLEAK_PROCESS";
    let own = std::process::id().to_string();
    if std::env::var(NAME).is_ok_and(|claimed| claimed == own) {
        return false;
    }
    // SAFETY: plugins are installed on the main thread before the machine is made; QEMU's other threads by then (RCU, the
    // loop of its I/O threads) look at no environment.
    unsafe { std::env::set_var(NAME, own) };
    true
}

/// What is called when a kernel is about to go.
pub struct Ends {
    /// The machine is about to be reset.
    pub reset: fn(),
    /// A snapshot is about to be loaded; also after `reset`.
    pub load: fn(),
}

static ENDS: OnceLock<Ends> = OnceLock::new();
/// The guest has suspended itself to RAM. Its CPUs are reset when it wakes, and nothing else ends.
static SUSPENDED: AtomicBool = AtomicBool::new(false);

/// Whether the machine is being reset because a suspended guest wakes: then it counts as running already
/// (qemu_system_wakeup_request(), system/runstate.c), and if it is reset otherwise, or loaded, it does not.
fn wakes() -> bool {
    SUSPENDED.load(Ordering::Relaxed) && is_running() == Some(true)
}

/// Learns of guests that suspend themselves.
fn watch_suspends() {
    /// QEMU's (include/qemu/notify.h, 9.2 to 11.1).
    #[repr(C)]
    struct Notifier {
        notify: extern "C" fn(*mut Notifier, *mut c_void),
        /// QEMU's own.
        node: [*mut c_void; 2],
    }
    extern "C" fn suspended(_: *mut Notifier, _: *mut c_void) {
        super::guard(|| SUSPENDED.store(true, Ordering::Relaxed));
    }
    let Some(register) = function("qemu_register_suspend_notifier") else { return };
    let notifier = Box::leak(Box::new(Notifier { notify: suspended, node: [std::ptr::null_mut(); 2] }));
    // SAFETY: `void qemu_register_suspend_notifier(Notifier *notifier)` (include/system/runstate.h, QEMU 9.2 to 11.1) puts it into a
    // list of the main thread's, which this is; the notifier and the function outlive the process.
    unsafe {
        let register: unsafe extern "C" fn(*mut Notifier) = std::mem::transmute(register);
        register(notifier);
    }
}

/// Has these called on QEMU's main thread before any device is reset: the vCPUs are stopped, and memory and registers are as they
/// were. Machines are reset before a snapshot is loaded, too (load_snapshot(), migration/savevm.c). GuestText whether this QEMU does so; once.
pub fn on_ends(ends: Ends) -> bool {
    type Handler = extern "C" fn(*mut c_void);
    extern "C" fn reset(_: *mut c_void) {
        super::guard(|| tell(|ends| ends.reset));
    }
    extern "C" fn any(_: *mut c_void) {
        super::guard(|| {
            tell(|ends| ends.load);
            SUSPENDED.store(false, Ordering::Relaxed);
        });
    }
    fn tell(which: fn(&Ends) -> fn()) {
        if let Some(ends) = ENDS.get().filter(|_| !wakes()) {
            which(ends)();
        }
    }
    let Some(no_load) = function("qemu_register_reset_nosnapshotload") else { return false };
    let Some(all) = function("qemu_register_reset") else { return false };
    if ENDS.set(ends).is_err() {
        return false;
    }
    // SAFETY: both are `void (QEMUResetHandler *func, void *opaque)` (include/system/reset.h, QEMU 9.2 to 11.1). Plugins are loaded
    // on the main thread with the machine's types registered and before it has devices (qemu_init_board(), system/vl.c), so
    // these handlers are before theirs, and called in this order. The functions outlive the process.
    unsafe {
        let register = |f| std::mem::transmute::<*mut c_void, unsafe extern "C" fn(Handler, *mut c_void)>(f);
        register(no_load)(reset, std::ptr::null_mut());
        register(all)(any, std::ptr::null_mut());
    }
    watch_suspends();
    true
}

/// Whether this QEMU tells of resets and of snapshots that are loaded.
pub fn tells_ends() -> bool {
    ENDS.get().is_some()
}

/// Whether the guest runs, or is stopped as a whole; `None` where QEMU does not export the function.
fn is_running() -> Option<bool> {
    let function = function("runstate_is_running")?;
    // SAFETY: `bool runstate_is_running(void)` (include/system/runstate.h, QEMU 9.2 to 11.1) reads a variable.
    Some(unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> bool>(function)() })
}
