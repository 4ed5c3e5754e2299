//! The original of replaced return addresses. The function graph tracer and kretprobes put their
//! own address on the stack, and keep the original.

use super::guest::Guest;
use guest_symbols::memory::{PAGE_SIZE, VirtAddr};

/// Most kretprobes of one task.
const MAX_NODES: usize = 1 << 10;

/// The original return address in the slot at virtual address `slot`, which now holds the address
/// `ip` of a tracer. Returns `ip` if it is not found. Call it only in callbacks that may read
/// registers.
#[cold]
pub(super) fn original(guest: &Guest, ip: u64, slot: u64) -> u64 {
    let task = guest.task();
    let original = task.and_then(|task| on_shadow_stack(guest, task, slot).or_else(|| of_kretprobe(guest, task, slot)));
    original.unwrap_or(ip)
}

/// The task's shadow stack: each entry has a slot and its original value (`struct
/// ftrace_ret_stack`, include/linux/ftrace.h, 5.10 to 7.3). The lowest entry of a slot has the
/// caller's address. Entries above it belong to functions that were called by a jump.
fn on_shadow_stack(guest: &Guest, task: VirtAddr, slot: u64) -> Option<u64> {
    let field = |name| guest.kernel.offset_of("ftrace_ret_stack", name);
    let (ret, retp) = (field("ret")?, field("retp")?);
    let read = |at: VirtAddr| guest.kernel.read_u64(&guest.ram, at).ok();
    let stack = read(task.offset(guest.kernel.offset_of("task_struct", "ret_stack")?)).filter(|&s| s != 0)?;
    let at = (0..PAGE_SIZE / 8).map(|i| stack.wrapping_add(8 * i)).find(|at| read(VirtAddr(*at)) == Some(slot))?;
    read(VirtAddr(at.wrapping_sub(retp).wrapping_add(ret)))
}

/// The task's kretprobes (`struct rethook_node`, include/linux/rethook.h, 5.18 on).
fn of_kretprobe(guest: &Guest, task: VirtAddr, slot: u64) -> Option<u64> {
    let field = |name| guest.kernel.offset_of("rethook_node", name);
    let (link, frame, ret) = (field("llist")?, field("frame")?, field("ret_addr")?);
    let read = |at: VirtAddr| guest.kernel.read_u64(&guest.ram, at).ok();
    let mut node = read(task.offset(guest.kernel.offset_of("task_struct", "rethooks")?))?;
    for _ in 0..MAX_NODES {
        let at = VirtAddr(node.wrapping_sub(link));
        // Depending on the version, this is the slot or the stack pointer after the return.
        let place = read(at.offset(frame)).filter(|_| node != 0)?;
        if place == slot || place == slot.wrapping_add(8) {
            return read(at.offset(ret));
        }
        node = read(VirtAddr(node))?;
    }
    None
}
