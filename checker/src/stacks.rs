//! What of tasks and their stacks is no reference.

use crate::blocks::Blocks;
use crate::known;
use detector::objects::Kind;
use guest_symbols::Kernel;
use guest_symbols::memory::{GuestMemory, StoppedMemory, VirtAddr};
use guest_symbols::tasks::{self, Stack, Tasks};
use guest_symbols::unwind::orc::{Base, Orc};
use std::collections::HashSet;
use std::ops::Range;

/// Members of `task_struct`, with their bytes, that refer to tasks which may be long gone, and whose memory may be
/// another object's: whom it woke last, which is compared and never followed (record_wakee, kernel/sched/fair.c),
/// and its place in the tree of runnable tasks, which stays as it was when it is taken out (rb_erase, lib/rbtree.c).
const DEAD_IN_TASKS: [(&str, u64); 2] = [("last_wakee", 8), ("se.run_node", 24)];

/// In `task_struct.flags` (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;
/// Bytes at the top of a kernel thread's stack in which the frame of kthread() is looked for.
const TOP: u64 = 1024;
/// Bytes of code in which a function saves registers.
const PROLOGUE: u64 = 64;

/// Only the part of a stack that is in use holds references: below, there is what returned functions left, which would
/// hide leaks.
pub(crate) fn apply_rules<M: StoppedMemory>(blocks: &mut Blocks<'_, M>, kernel: &Kernel) {
    let Some(tasks) = tasks::read(kernel, blocks.memory, &blocks.percpu) else {
        log::warn!("the kernel's tasks cannot be read: whole stacks are scanned, which may hide leaks");
        return;
    };
    skip_dead_members(blocks, kernel, &tasks);
    skip_stacks_of_nobody(blocks, kernel, &tasks);
    let threads = Threads::of(kernel);
    for stack in &tasks.stacks {
        let Some(block) = blocks.addresses.find(stack.base) else { continue };
        let b = &blocks.blocks[block as usize];
        if b.addr != stack.base || b.object.kind != Kind::Vmalloc {
            continue;
        }
        let size = b.size;
        let mut dead: Vec<Range<u64>> = Vec::new();
        match stack.state {
            Stack::From(sp) if sp.wrapping_sub(stack.base) < size => dead.push(0..(sp - stack.base) & !7),
            // A task that has not run yet, or nonsense: all of it is read.
            Stack::From(_) | Stack::Running => {}
            Stack::Cached => dead.push(0..size),
        }
        if let Some(threads) = &threads {
            let words = threads.dead_words(blocks, kernel, stack.task, stack.base..stack.base + size);
            dead.extend(words.into_iter().flatten());
        }
        blocks.skip.entry(block).or_default().extend(dead);
    }
}

fn skip_dead_members<M: StoppedMemory>(blocks: &mut Blocks<'_, M>, kernel: &Kernel, tasks: &Tasks) {
    for (member, len) in DEAD_IN_TASKS {
        let Some(offset) = kernel.offset_of("task_struct", member) else { continue };
        for task in &tasks.tasks {
            if let Some(block) = blocks.addresses.find(task.0) {
                let at = task.0 - blocks.blocks[block as usize].addr + offset;
                blocks.skip.entry(block).or_default().push(at..at + len);
            }
        }
    }
}

/// A stack of no task waits for a grace period: at its start lies the rcu_head, through which everything that waits
/// behind it is found (struct vm_stack, kernel/fork.c, 5.18 on).
fn skip_stacks_of_nobody<M: StoppedMemory>(blocks: &mut Blocks<'_, M>, kernel: &Kernel, tasks: &Tasks) {
    let head = kernel.btf.as_ref().and_then(|b| b.size_of("vm_stack")).unwrap_or(0);
    let owned: HashSet<u64> = tasks.stacks.iter().map(|s| s.base).collect();
    for (i, b) in blocks.blocks.iter().enumerate() {
        let is_stack = b.object.kind == Kind::Vmalloc && known::is_stack_site(kernel, &b.object);
        if is_stack && !owned.contains(&b.addr) {
            blocks.skip.entry(i as u32).or_default().push(head.min(b.size)..b.size);
        }
    }
}

/// Kernel threads: what kthread() leaves on their stacks.
///
/// kthread() never returns, and when it has called the thread's function it needs nothing of what it had in registers
/// but what `struct kthread` holds as well. Yet that function saves those registers, and kthread() those of
/// ret_from_fork(): both keep the `struct kthread_create_info` that the thread was made from, freed since
/// (kernel/kthread.c, 5.10 to 7.3), and so whatever is allocated there next. A thread that was made and not yet started
/// waits in kthread() itself, with the same in its registers.
struct Threads<'a> {
    orc: &'a Orc,
    /// The code of kthread().
    kthread: Range<u64>,
    /// In `task_struct` the flags and the pointer to `struct kthread`, and in that the thread's function.
    flags: u64,
    kthread_of: u64,
    function: u64,
}

impl<'a> Threads<'a> {
    fn of(kernel: &'a Kernel) -> Option<Threads<'a>> {
        let at = kernel.symbol("kthread")?.0;
        let size = kernel.symbols.resolve(at)?.size;
        let task = |member| kernel.offset_of("task_struct", member);
        Some(Threads {
            orc: kernel.orc.as_ref()?,
            kthread: at + 1..at + size,
            flags: task("flags")?,
            kthread_of: task("worker_private").or_else(|| task("set_child_tid"))?,
            function: kernel.offset_of("kthread", "threadfn")?,
        })
    }

    /// The bytes of a stack, counted from its base, that are dead for this reason; the later ones are at its top.
    fn dead_words<M: StoppedMemory>(
        &self,
        blocks: &Blocks<'_, M>,
        kernel: &Kernel,
        task: VirtAddr,
        stack: Range<u64>,
    ) -> Option<[Range<u64>; 2]> {
        let memory = blocks.memory;
        let read = |at: u64| kernel.read_u64(memory, VirtAddr(at)).ok();
        if kernel.read_u32(memory, task.offset(self.flags)).ok()? & PF_KTHREAD == 0 {
            return None;
        }
        // The highest return address into kthread().
        let mut slots = (1..=TOP / 8).map(|i| stack.end - 8 * i).filter(|&at| at >= stack.start);
        let (slot, ret) = slots.find_map(|at| Some((at, read(at).filter(|w| self.kthread.contains(w))?)))?;
        let first = match called(kernel, memory, ret)? {
            Call::Indirect => {
                let function = read(read(task.0.wrapping_add(self.kthread_of))?.wrapping_add(self.function))?;
                (slot - 8 * self.saved_registers(kernel, memory, function)).max(stack.start)
            }
            // It waits to be started.
            Call::To(name) if name.starts_with("schedule") => stack.start,
            Call::To(_) => return None,
        };
        let from_base = |range: Range<u64>| range.start - stack.start..range.end - stack.start;
        Some([from_base(first..slot), from_base(slot..stack.end)])
    }

    /// How many registers a function saves right below its return address: as many as it pushes one after the other.
    fn saved_registers(&self, kernel: &Kernel, memory: &impl GuestMemory, function: u64) -> u64 {
        let mut saved = 0;
        for (at, rule) in self.orc.changes(function + 1..function.saturating_add(PROLOGUE)) {
            let mut code = [0; 2];
            let pushes = kernel.read(memory, VirtAddr(at - 2), &mut code).is_ok()
                && matches!(code, [0x41, 0x54..=0x57] | [_, 0x53 | 0x55]);
            if rule.sp != Base::Sp || i64::from(rule.sp_offset) != 16 + 8 * saved as i64 || !pushes {
                break;
            }
            saved += 1;
        }
        saved
    }
}

/// What is called by an instruction.
enum Call<'a> {
    /// What a register points at, perhaps by way of a thunk.
    Indirect,
    /// A function.
    To(&'a str),
}

/// The call before a return address.
fn called<'a>(kernel: &'a Kernel, memory: &impl GuestMemory, ret: u64) -> Option<Call<'a>> {
    let mut code = [0; 5];
    kernel.read(memory, VirtAddr(ret - 5), &mut code).ok()?;
    match code {
        [_, _, _, 0xff, 0xd0..=0xd7] => Some(Call::Indirect),
        [0xe8, to @ ..] => {
            let target = ret.wrapping_add_signed(i32::from_le_bytes(to).into());
            let name = kernel.symbols.resolve(target)?.name;
            Some(if name.starts_with("__x86_indirect_") { Call::Indirect } else { Call::To(name) })
        }
        _ => None,
    }
}
