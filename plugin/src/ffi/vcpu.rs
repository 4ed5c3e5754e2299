//! vCPUs from outside of their callbacks: work that is run on their threads, and their registers
//! while they are stopped.

use super::arch::GENERAL_REGISTERS;
use super::direct;
use super::job::Job;
use super::optional::{self, CpuState};
use super::witness::{GuestStopped, Work};
use super::{api, panics, regs};
use libc::{c_int, c_void};
use std::sync::Arc;
use std::time::Duration;

/// Why a vCPU does not do what it is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VcpuError {
    /// This build of QEMU lacks a function.
    #[error("this QEMU does not export {0}")]
    NotExported(&'static str),
    /// There is no vCPU of that index.
    #[error("QEMU has no vCPU {0}")]
    NoVcpu(usize),
    /// It took too long.
    #[error("the vCPUs did not stop in time")]
    Timeout,
}

/// A vCPU's CPUState; QEMU frees none before the process ends, but for hot unplug.
#[derive(Clone, Copy)]
pub struct Cpu(CpuState);

/// vCPU `index`.
fn cpu(index: usize) -> Option<Cpu> {
    let get = optional::qemu_get_cpu()?;
    // SAFETY: it searches a list.
    let cpu = unsafe { get(index as c_int) };
    (!cpu.is_null()).then_some(Cpu(cpu))
}

/// Gives all vCPUs, of which none is unplugged meanwhile.
pub fn with_cpus<T>(f: impl FnOnce(&[Cpu]) -> T) -> T {
    /// The list of vCPUs, locked; a vCPU that is unplugged is taken out of it before it is freed
    /// (cpu_exec_unrealizefn()).
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
        // SAFETY: a lock that this thread does not hold.
        unsafe { lock() };
    }
    let _locked = Locked;
    // SAFETY: it takes nothing and gives a number.
    let most = unsafe { (api::api().num_vcpus)() }.max(0) as usize;
    f(&(0..most).filter_map(cpu).collect::<Vec<_>>())
}

/// General registers and program counter of a vCPU, from any thread, by QEMU's own debugger
/// interface where the build exports it. In the order of gdb.
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

/// This thread, one of ours, as one that QEMU's RCU knows, until this is dropped.
pub struct Registered(());

/// Makes this thread known to QEMU's RCU.
pub fn register_thread() -> Registered {
    if let Some(register) = optional::rcu_register_thread() {
        // SAFETY: once on each thread of ours, before it reads guest memory.
        unsafe { register() };
    }
    Registered(())
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(unregister) = optional::rcu_unregister_thread() {
            // SAFETY: once, on the thread that was registered.
            unsafe { unregister() };
        }
    }
}

/// Runs `work` while no vCPU executes anything, on a vCPU's thread, and waits for it at most
/// `timeout`.
///
/// # Errors
/// [`VcpuError`]; the work has then not run, and never will.
pub fn exclusive(work: Work, timeout: Duration) -> Result<(), VcpuError> {
    extern "C" fn run(_cpu: CpuState, data: u64) {
        // SAFETY: `data` is the Arc that was given away below, taken back exactly once.
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
    // SAFETY: callable from any thread, with a vCPU that is not unplugged (vCPU 0 never is).
    unsafe { safe_run(cpu.0, run, Arc::into_raw(job.clone()) as u64) };
    if job.has_run(&wait, timeout) { Ok(()) } else { Err(VcpuError::Timeout) }
}

/// Runs `work` while no vCPU executes anything, on the thread of vCPU `index`, before that executes
/// another block: QEMU looks at a vCPU's work when a block ends. To be called in a callback of that
/// vCPU, which must return for it.
///
/// # Errors
/// [`VcpuError`].
pub fn exclusive_after(index: usize, work: Work) -> Result<(), VcpuError> {
    extern "C" fn run(_cpu: CpuState, data: u64) {
        // SAFETY: `data` is the box that was given away below; QEMU runs work once.
        let work = unsafe { Box::from_raw(data as *mut Work) };
        // SAFETY: QEMU runs it in an exclusive section: no vCPU executes.
        super::guard(|| work(&unsafe { GuestStopped::new() }));
    }
    let safe_run = optional::async_safe_run_on_cpu().ok_or(VcpuError::NotExported("async_safe_run_on_cpu"))?;
    let cpu = cpu(index).ok_or(VcpuError::NoVcpu(index))?;
    // SAFETY: as in `exclusive`. With thread=single the index may be of another vCPU; they all
    // share one thread then, and work for any of them stops it.
    unsafe { safe_run(cpu.0, run, Box::into_raw(Box::new(work)) as u64) };
    Ok(())
}

/// Has QEMU throw away all that it has translated, before this vCPU executes another block. In a
/// callback of a vCPU.
pub fn flush_translations() {
    extern "C" fn run(cpu: *mut c_void, _: u64) {
        super::guard(|| {
            // SAFETY: in an exclusive section, as here, both flush at once.
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
        // SAFETY: as in `exclusive`; the vCPU is the one in whose callback this is.
        unsafe { safe_run(cpu, run, 0) };
    }
}

/// Lets a guest go on that was stopped by a monitor which does not answer any more. It does so by
/// itself as soon as it can, and nothing happens if it runs.
///
/// # Errors
/// [`VcpuError`].
pub fn resume() -> Result<(), VcpuError> {
    extern "C" fn run(_cpu: CpuState, _data: u64) {
        let _ = panics::always(|| {
            if let Some(start) = optional::vm_start() {
                // SAFETY: QEMU holds its big lock when it runs a vCPU's work.
                unsafe { start() }
            }
        });
    }
    let async_run = optional::async_run_on_cpu().ok_or(VcpuError::NotExported("async_run_on_cpu"))?;
    optional::vm_start().ok_or(VcpuError::NotExported("vm_start"))?;
    let cpu = cpu(0).ok_or(VcpuError::NoVcpu(0))?;
    // SAFETY: as in `exclusive`. A stopped vCPU looks at its work too.
    unsafe { async_run(cpu.0, run, 0) };
    Ok(())
}
