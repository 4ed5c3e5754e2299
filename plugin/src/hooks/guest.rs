//! The kernel that was found in the guest: its addresses, the offsets that hooks need, and whether
//! it is still there.

use super::arch;
use super::context::{Context, Who};
use super::fingerprint::Fingerprint;
use super::guest_text::GuestText;
use crate::ffi::ram::Ram;
use crate::ffi::regs;
use crate::ffi::witness::GuestStopped;
use guest_symbols::Kernel;
use guest_symbols::memory::VirtAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// A guest whose kernel has been found.
pub struct Guest {
    /// The kernel.
    pub kernel: Kernel,
    /// Its RAM.
    pub ram: Ram,
    /// Which kernel of this QEMU it is, counted from 1.
    pub boot: u64,
    /// Checksum of the data by which the kernel was found ([`Kernel::checksum`]).
    pub checksum: u32,
    /// Reads text of the guest.
    pub text: GuestText,
    context: Context,
    /// Virtual addresses of the kernel's image.
    image: Range<u64>,
    /// Distinguishes this kernel from others; `None` if it cannot be read.
    fingerprint: Option<Fingerprint>,
    /// The kernel is gone.
    retired: AtomicBool,
    /// Another kernel runs, and QEMU does not report resets.
    replaced: AtomicBool,
}

impl Guest {
    /// Resolves all offsets. `boot` is the number of kernels in this QEMU until now, with this one.
    pub fn new(kernel: Kernel, ram: Ram, boot: u64, stopped: &GuestStopped) -> Guest {
        Guest {
            boot,
            checksum: kernel.checksum(&ram.stopped(stopped)),
            text: GuestText::new(&kernel),
            context: Context::new(&kernel),
            image: kernel.symbols.lookup("_text").unwrap_or(0)..kernel.symbols.lookup("_end").unwrap_or(u64::MAX),
            fingerprint: Fingerprint::of(&kernel, &ram),
            retired: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
            kernel,
            ram,
        }
    }

    /// Whether a virtual address lies in the kernel's image.
    #[inline]
    pub fn is_in_image(&self, at: u64) -> bool {
        self.image.contains(&at)
    }

    /// Whether the kernel is where it was found.
    pub fn is_there(&self) -> bool {
        self.fingerprint.as_ref().is_none_or(|fingerprint| fingerprint.is_there(&self.ram))
    }

    /// Whether the kernel is gone, so that its data is no longer valid. Call it while the guest is
    /// stopped.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// The kernel is gone, or it was resumed from hibernation.
    pub(super) fn set_retired(&self, retired: bool) {
        self.retired.store(retired, Ordering::Release);
    }

    /// Whether another kernel runs although QEMU has reported no reset.
    pub fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Another kernel runs although QEMU has reported no reset.
    pub(super) fn set_replaced(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }

    /// A tag that is passed to callbacks, so that callbacks left from an earlier kernel are
    /// ignored.
    #[inline]
    pub(super) fn tag(&self) -> u16 {
        self.boot as u16
    }

    /// The guest's jiffies; 0 where they cannot be read.
    pub fn jiffies(&self) -> u64 {
        self.context.jiffies(&self.ram)
    }

    /// Virtual address of the current vCPU's task; `None` before there are tasks. Call it only in
    /// callbacks that may read registers.
    pub fn task(&self) -> Option<VirtAddr> {
        self.context.task(&self.kernel.view(&self.ram), VirtAddr(regs::read(arch::PER_CPU_BASE)))
    }

    /// The context on the current vCPU. Call it only in callbacks that may read registers.
    pub fn who(&self) -> Who {
        self.context.who(&self.kernel.view(&self.ram), VirtAddr(regs::read(arch::PER_CPU_BASE)))
    }
}
