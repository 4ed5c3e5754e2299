//! vCPUs, used from outside of their callbacks: work that runs on their threads, and registers of
//! stopped vCPUs.

use super::arch::GENERAL_REGISTERS;
use super::direct;
use super::job::Job;
use super::optional::{self, CpuState};
use super::witness::{GuestStopped, Work};
use super::{api, panics, regs};
use libc::{c_int, c_void};
use std::sync::Arc;
use std::time::Duration;

/// Why work on a vCPU failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VcpuError {
    /// This build of QEMU lacks a function.
    #[error("this QEMU does not export {0}")]
    NotExported(&'static str),
    /// There is no vCPU with this index.
    #[error("QEMU has no vCPU {0}")]
    NoVcpu(usize),
    /// The vCPUs did not stop in time.
    #[error("the vCPUs did not stop in time")]
    Timeout,
}

/// A vCPU's CPUState. QEMU frees it only on hot unplug, or when the process ends.
#[derive(Clone, Copy)]
pub struct Cpu(CpuState);

/// vCPU `index`.
fn cpu(index: usize) -> Option<Cpu> {
    let get = optional::qemu_get_cpu()?;
    // SAFETY: it searches a list.
    let cpu = unsafe { get(index as c_int) };
    (!cpu.is_null()).then_some(Cpu(cpu))
}

/// Calls `f` with all vCPUs. None of them is unplugged in the meantime.
pub fn with_cpus<T>(f: impl FnOnce(&[Cpu]) -> T) -> T {
    /// Holds the lock of QEMU's list of vCPUs. An unplugged vCPU is removed from the list before it
    /// is freed (cpu_exec_unrealizefn()).
    struct Locked;
    impl Drop for Locked {
        fn drop(&mut self) {
            if let Some(unlock) = optional::cpu_list_unlock() {
                // SAFETY: this thread has locked it.
                unsafe { unlock() };
            }
        }
    }
    if let Some(lock) = optional::cpu_list_lock() {
        // SAFETY: this thread does not hold the lock.
        unsafe { lock() };
    }
    let _locked = Locked;
    // SAFETY: it takes no argument and returns a number.
    let most = unsafe { (api::api().num_vcpus)() }.max(0) as usize;
    f(&(0..most).filter_map(cpu).collect::<Vec<_>>())
}

/// The general registers and the program counter of a vCPU, in gdb's order. Can be called on any
/// thread. `None` if QEMU does not export its debugger interface.
pub fn registers(cpu: Cpu, _: &GuestStopped) -> Option<[u64; GENERAL_REGISTERS]> {
    let read_register = optional::gdb_read_register()?;
    let mut out = [0; GENERAL_REGISTERS];
    let buffer = regs::buffer();
    // SAFETY: `cpu` is a CPUState from qemu_get_cpu; set_size and read_register keep `data` and
    // `len` in step, and no more than `len` bytes are read.
    unsafe {
        for (number, value) in out.iter_mut().enumerate() {
            (api::api().byte_array_set_size)(buffer, 0);
            read_register(cpu.0, buffer, number as c_int);
            if (*buffer).len != 8 {
                return None;
            }
            *value = (*buffer).data.cast::<u64>().read_unaligned();
        }
    }
    Some(out)
}

/// While this exists, QEMU's RCU knows this thread.
pub struct Registered(());

/// Makes this thread known to QEMU's RCU.
pub fn register_thread() -> Registered {
    if let Some(register) = optional::rcu_register_thread() {
        // SAFETY: it is called once on each of libleak's threads, before the thread reads guest
        // memory.
        unsafe { register() };
    }
    Registered(())
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(unregister) = optional::rcu_unregister_thread() {
            // SAFETY: it is called once, on the registered thread.
            unsafe { unregister() };
        }
    }
}

/// Runs `work` on a vCPU's thread while no vCPU executes. Waits for it at most `timeout`.
///
/// # Errors
/// [`VcpuError`]; the work has not run then, and never will.
pub fn exclusive(work: Work, timeout: Duration) -> Result<(), VcpuError> {
    extern "C" fn run(_cpu: CpuState, data: u64) {
        // SAFETY: `data` is the Arc from below, which is taken back exactly once.
        let job = unsafe { Arc::from_raw(data as *const Job) };
        super::guard(|| job.run());
        job.done();
    }
    let safe_run = optional::async_safe_run_on_cpu().ok_or(VcpuError::NotExported("async_safe_run_on_cpu"))?;
    let cpu = cpu(0).ok_or(VcpuError::NoVcpu(0))?;
    let (job, wait) = Job::new(Box::new(move || {
        // SAFETY: QEMU runs it in an exclusive section: no vCPU executes.
        work(&unsafe { GuestStopped::new() });
    }));
    // SAFETY: it can be called on any thread. vCPU 0 is never unplugged.
    unsafe { safe_run(cpu.0, run, Arc::into_raw(job.clone()) as u64) };
    if job.has_run(&wait, timeout) { Ok(()) } else { Err(VcpuError::Timeout) }
}

/// Runs `work` on the thread of vCPU `index` while no vCPU executes. QEMU runs a vCPU's work at the
/// end of a block, so it runs before the vCPU's next block. Call it in a callback of that vCPU; the
/// callback must return.
///
/// # Errors
/// [`VcpuError`].
pub fn exclusive_after(index: usize, work: Work) -> Result<(), VcpuError> {
    extern "C" fn run(_cpu: CpuState, data: u64) {
        // SAFETY: `data` is the box from below; QEMU runs work once.
        let work = unsafe { Box::from_raw(data as *mut Work) };
        // SAFETY: QEMU runs it in an exclusive section: no vCPU executes.
        super::guard(|| work(&unsafe { GuestStopped::new() }));
    }
    let safe_run = optional::async_safe_run_on_cpu().ok_or(VcpuError::NotExported("async_safe_run_on_cpu"))?;
    let cpu = cpu(index).ok_or(VcpuError::NoVcpu(index))?;
    // SAFETY: as in `exclusive`. With thread=single the index may be that of another vCPU. All
    // vCPUs share one thread then, and work for any of them stops it.
    unsafe { safe_run(cpu.0, run, Box::into_raw(Box::new(work)) as u64) };
    Ok(())
}

/// Makes QEMU flush all translations before this vCPU executes another block. Call it in a callback
/// of a vCPU.
pub fn flush_translations() {
    extern "C" fn run(cpu: *mut c_void, _: u64) {
        super::guard(|| {
            // SAFETY: this is an exclusive section, in which both functions flush at once.
            unsafe {
                if let Some(flush) = optional::tb_flush__exclusive_or_serial() {
                    flush();
                } else if let Some(flush) = optional::tb_flush() {
                    flush(cpu);
                }
            }
        });
    }
    if let (Some(safe_run), Some(cpu)) = (optional::async_safe_run_on_cpu(), direct::current()) {
        // SAFETY: as in `exclusive`. This is a callback of the vCPU.
        unsafe { safe_run(cpu, run, 0) };
    }
}

/// Resumes a guest that was stopped through a monitor that no longer answers. A vCPU does this
/// soon; the function does not wait. It does nothing if the guest runs.
///
/// # Errors
/// [`VcpuError`].
pub fn resume() -> Result<(), VcpuError> {
    extern "C" fn run(_cpu: CpuState, _data: u64) {
        let _ = panics::always(|| {
            if let Some(start) = optional::vm_start() {
                // SAFETY: QEMU holds its big lock while it runs a vCPU's work.
                unsafe { start() }
            }
        });
    }
    let async_run = optional::async_run_on_cpu().ok_or(VcpuError::NotExported("async_run_on_cpu"))?;
    optional::vm_start().ok_or(VcpuError::NotExported("vm_start"))?;
    let cpu = cpu(0).ok_or(VcpuError::NoVcpu(0))?;
    // SAFETY: as in `exclusive`. A stopped vCPU also runs its work.
    unsafe { async_run(cpu.0, run, 0) };
    Ok(())
}
