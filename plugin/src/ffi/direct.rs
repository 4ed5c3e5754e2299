//! Reads registers of the current vCPU where QEMU keeps them.
//!
//! The plugin API reads a register through the debugger's interface, which takes 24 to 30 ns. A
//! hook reads five registers. If this build of QEMU exports `current_cpu`, the offsets of the
//! registers in a vCPU's state are learnt: the state is compared with the API's values. The offsets
//! are used once both have agreed often enough. TCG writes registers back to the state before a
//! callback that may read registers.

use super::api;
use super::arch::{PER_CPU_BASE_WITHIN, REGISTERS, Reg, STATE_ORDER};
use libc::c_void;
use parking_lot::Mutex;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Offset in bytes of each register in a vCPU's state; 0 if the API is to be used. They are static
/// because all vCPUs have the same type, and callbacks have no data that could hold them.
static PLACES: [AtomicU32; REGISTERS] = [const { AtomicU32::new(0) }; REGISTERS];
/// Learning has ended, with or without success. All vCPUs share it.
static SETTLED: AtomicBool = AtomicBool::new(false);
/// The state of learning. All vCPUs share it.
static TRIAL: Mutex<Trial> = Mutex::new(Trial::new());

/// Comparisons that must agree, and most tries.
const AGREEMENTS: u32 = 64;
const TRIES: u32 = 4096;
thread_local! {
    /// Address of QEMU's thread-local `CPUState *current_cpu`, which each thread has to look up. It
    /// is 0 before the lookup, and 1 if QEMU does not export it.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// The state of learning.
struct Trial {
    tries: u32,
    agreed: u32,
    /// Index of the general registers in the words of the state.
    registers: Option<usize>,
    /// Indexes of all words that had the per-CPU base in each comparison.
    gs_base: Vec<usize>,
}

impl Trial {
    const fn new() -> Trial {
        Trial { tries: 0, agreed: 0, registers: None, gs_base: Vec::new() }
    }

    /// Compares `state` with the API's values once more. Returns whether learning has ended.
    fn compare(&mut self, state: &[u64], said: &impl Fn(Reg) -> u64) -> bool {
        self.tries += 1;
        let is_there = |at: usize| STATE_ORDER.iter().all(|(i, reg)| state.get(at + i) == Some(&said(*reg)));
        let gs_base = said(Reg::PER_CPU_BASE);
        match self.registers {
            Some(at) if is_there(at) => {
                self.gs_base.retain(|&at| state.get(at) == Some(&gs_base));
                self.agreed += 1;
            }
            // The earlier agreement was a coincidence, so all of it is dropped.
            Some(_) => *self = Trial { tries: self.tries, ..Trial::new() },
            None if gs_base != 0 && said(Reg::STACK_POINTER) != 0 => {
                let mut places = (0..state.len()).filter(|&at| is_there(at));
                if let (Some(at), None) = (places.next(), places.next()) {
                    self.registers = Some(at);
                    let near = at + 10..state.len().min(at + PER_CPU_BASE_WITHIN / 8);
                    self.gs_base = near.filter(|&at| state[at] == gs_base).collect();
                }
            }
            None => {}
        }
        self.agreed >= AGREEMENTS || self.tries >= TRIES
    }

    /// Publishes the offsets if they are certain.
    fn publish(&self) {
        let Some(at) = self.registers.filter(|_| self.agreed >= AGREEMENTS) else {
            return log::info!("the registers' place was not found: they are read through QEMU's API");
        };
        for (i, reg) in STATE_ORDER {
            PLACES[reg as usize].store(8 * (at + i) as u32, Ordering::Relaxed);
        }
        if let [at] = self.gs_base[..] {
            PLACES[Reg::PER_CPU_BASE as usize].store(8 * at as u32, Ordering::Relaxed);
        }
        log::debug!("the registers lie {} words into the vCPU's state, the base of gs {:?}", at, self.gs_base);
    }
}

/// The start of the current vCPU's state; `None` if QEMU does not export it.
#[inline]
fn state() -> Option<*const u8> {
    let mut at = CURRENT.get();
    if at <= 1 {
        if at == 1 {
            return None;
        }
        at = api::lookup("current_cpu").map_or(1, |at| at as usize);
        CURRENT.set(at);
        if at == 1 {
            return None;
        }
    }
    // SAFETY: dlsym() gave the address of this thread's own copy of the thread-local `CPUState
    // *current_cpu` (include/hw/core/cpu.h, QEMU 9.2 to 11.1), which lives as long as the thread
    // and is written by it alone.
    let cpu = unsafe { (at as *const *const u8).read() };
    (!cpu.is_null()).then_some(cpu)
}

/// The current vCPU (`CPUState *`); `None` if QEMU does not export it.
pub fn current() -> Option<*mut c_void> {
    state().map(|cpu| cpu.cast_mut().cast())
}

/// Reads a register of the current vCPU, if its offset is known. Call it only in callbacks that may
/// read registers.
#[inline]
pub fn read(reg: Reg) -> Option<u64> {
    let place = PLACES[reg as usize].load(Ordering::Relaxed) as usize;
    if place == 0 {
        return None;
    }
    let cpu = state()?;
    // SAFETY: all vCPUs have the same type and size. The offset lies in the state, and held this
    // register in each comparison. This thread is in the vCPU's callback, so no other thread
    // writes.
    Some(unsafe { cpu.add(place).cast::<u64>().read() })
}

/// Compares once more, unless learning has ended. `said` reads a register through the API. Call it
/// only in callbacks that may read registers.
#[cold]
pub fn learn(said: impl Fn(Reg) -> u64) {
    if SETTLED.load(Ordering::Relaxed) {
        return;
    }
    let Some(mut trial) = TRIAL.try_lock() else { return };
    let Some(cpu) = state() else { return SETTLED.store(true, Ordering::Relaxed) };
    // SAFETY: a vCPU's state is one object, which QEMU allocates with malloc() or posix_memalign()
    // (object_new_with_type(), qom/object.c). It starts with CPUState, and the allocator knows its
    // length. It is aligned for words. While this thread is in a callback of this vCPU, other
    // threads write only words that are not registers. Those are read atomically, and the
    // comparison rejects them whatever they contain.
    let words: Vec<u64> = unsafe {
        let len = libc::malloc_usable_size(cpu.cast_mut().cast::<c_void>()) / 8;
        (0..len).map(|i| (*cpu.cast::<AtomicU64>().add(i)).load(Ordering::Relaxed)).collect()
    };
    if trial.compare(&words, &said) {
        trial.publish();
        SETTLED.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(n: u64) -> Vec<u64> {
        let mut words = vec![n; 200];
        words[100..110].copy_from_slice(&std::array::from_fn::<u64, 10, _>(|i| n * 1000 + i as u64));
        words[130] = 0xffff_8880_0000_0000;
        words
    }

    fn said(n: u64) -> impl Fn(Reg) -> u64 {
        move |reg| match reg {
            Reg::PER_CPU_BASE => 0xffff_8880_0000_0000,
            reg => STATE_ORDER.iter().find(|(_, r)| *r == reg).map_or(0, |(i, _)| n * 1000 + *i as u64),
        }
    }

    #[test]
    fn agreement_is_needed() {
        let mut trial = Trial::new();
        assert!((1..=u64::from(AGREEMENTS)).all(|n| !trial.compare(&state(n), &said(n))));
        assert!(trial.compare(&state(77), &said(77)));
        assert_eq!((trial.registers, &trial.gs_base[..]), (Some(100), &[130][..]));
        // All registers are equal, so every place would fit.
        let mut trial = Trial::new();
        assert!(!trial.compare(&[5; 100], &|_| 5));
        assert_eq!(trial.registers, None);
        // A disagreement starts learning again.
        let mut trial = Trial::new();
        trial.compare(&state(1), &said(1));
        trial.compare(&state(2), &said(3));
        assert_eq!((trial.registers, trial.agreed), (None, 0));
        assert!((0..TRIES).any(|_| trial.compare(&[0; 10], &|_| 0)), "it comes to an end");
    }
}
