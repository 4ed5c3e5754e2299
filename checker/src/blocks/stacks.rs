//! Words of tasks and their stacks that are not references.

use crate::blocks::Blocks;
use crate::blocks::allocation_sites;
use crate::prologue::{self, Register};
use detector::objects::Kind;
use guest_symbols::Kernel;
use guest_symbols::code::Code;
use guest_symbols::memory::{GuestMemory, StoppedMemory, VirtAddr};
use guest_symbols::tasks::{self, Stack, Tasks};
use guest_symbols::unwind::frames::{self, Registers};
use guest_symbols::unwind::orc::{Base, Rule};
use guest_symbols::vmap;
use std::collections::HashSet;
use std::ops::{Range, RangeInclusive};

/// Members of `task_struct` that may point to objects that were freed long ago.
///
/// - `last_wakee` is the task that this task woke last. The kernel compares it and never follows it
///   (record_wakee, kernel/sched/fair.c).
/// - `se.run_node` is the place in the tree of runnable tasks. rb_erase() leaves it as it was
///   (lib/rbtree.c).
/// - `held_locks` are lockdep's records of locks that the task holds or held (lock_release,
///   kernel/locking/lockdep.c). The owner of a lock has other references to it.
const STALE_IN_TASKS: [&str; 3] = ["last_wakee", "se.run_node", "held_locks"];

/// A flag in `task_struct.flags` (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;
/// The sizes in bytes of a stack that are accepted. KASAN doubles the size.
const STACK_SIZES: RangeInclusive<u64> = (8 << 10)..=(128 << 10);
/// Where the first idle task's stack ends: the symbol of newer kernels, and the one of older ones.
const ENDS_OF_FIRST_STACK: [&str; 2] = ["__end_init_stack", "__end_init_task"];
/// Size in bytes of a frame with a return address only, and of one with the caller's frame pointer
/// too.
const RETURN_ADDRESS: u64 = 8;
const FRAME_POINTER: i16 = 16;

/// Leaves out the part of each stack that is not in use. The words there are left over from
/// functions that returned, and would hide leaks.
pub(crate) fn apply_rules<M: StoppedMemory>(blocks: &mut Blocks<'_, M>, kernel: &Kernel, areas: Option<&[vmap::Area]>) {
    // If tasks cannot be read, whole stacks are scanned, which may hide leaks.
    let tasks = tasks::read(kernel, blocks.memory, &blocks.percpu);
    let Some(tasks) = blocks.troubles.read("tasks", tasks) else { return };
    skip_stale_members(blocks, kernel, &tasks);
    skip_stacks_of_nobody(blocks, kernel, &tasks, areas.unwrap_or_default());
    let threads = Threads::of(kernel, blocks.memory);
    for stack in &tasks.stacks {
        // The first idle task's stack is a variable of the image (init_stack).
        let block = blocks.addresses.find(stack.base);
        let size = match block.map(|block| &blocks.blocks[block as usize]) {
            Some(b) if b.addr == stack.base && b.kind == Kind::Vmalloc => b.size,
            Some(_) => continue,
            None => match size_of_first_stack(kernel, stack.base) {
                Some(size) => size,
                None => continue,
            },
        };
        let whole = stack.base..stack.base + size;
        let state = match stack.state {
            // Early boot runs on the first idle task's stack. Its `on_cpu` is not set before
            // sched_init() (init_idle(), kernel/sched/core.c, 5.10 to 7.3).
            Stack::From(_) if blocks.stack_pointer_in(&whole).is_some() => Stack::Running,
            state => state,
        };
        let mut stale: Vec<Range<u64>> = Vec::new();
        match state {
            Stack::From(sp) if sp.wrapping_sub(stack.base) < size => stale.push(0..(sp - stack.base) & !7),
            // The task has not run yet, or its stack pointer is corrupted. The whole stack is read.
            Stack::From(_) => {}
            // If no stack pointer is in it, the whole stack is read. The task may be in the middle
            // of a switch.
            Stack::Running => {
                let sp = blocks.stack_pointer_in(&whole);
                stale.extend(sp.map(|sp| 0..sp - stack.base));
            }
            Stack::Cached => stale.push(0..size),
        }
        if let (Some(threads), Stack::From(sp)) = (&threads, state) {
            let words = threads.stale_words(blocks, kernel, stack.task, sp, whole);
            stale.extend(words.into_iter().flatten().map(|r| r.start - stack.base..r.end - stack.base));
        }
        match block {
            Some(block) => blocks.skip.extend(block, stale),
            None => blocks.stale_ranges.extend(stale.iter().map(|r| stack.base + r.start..stack.base + r.end)),
        }
    }
}

/// Bytes of the first idle task's stack, if it is at this virtual address. The linker script places
/// it (INIT_TASK_DATA in include/asm-generic/vmlinux.lds.h, 5.10 to 7.3).
fn size_of_first_stack(kernel: &Kernel, base: u64) -> Option<u64> {
    let start = kernel.symbol("init_stack").filter(|start| start.0 == base)?;
    let end = ENDS_OF_FIRST_STACK.iter().find_map(|name| kernel.symbol(name))?;
    end.0.checked_sub(start.0).filter(|size| size.is_power_of_two() && STACK_SIZES.contains(size))
}

fn skip_stale_members<M: StoppedMemory>(blocks: &mut Blocks<'_, M>, kernel: &Kernel, tasks: &Tasks) {
    let Some(btf) = kernel.btf.as_ref() else { return };
    for member in STALE_IN_TASKS.iter().filter_map(|name| btf.member("task_struct", name)) {
        let Some(len) = btf.type_size(member.type_id) else { continue };
        for task in &tasks.tasks {
            let at = task.0.wrapping_add(member.offset());
            match blocks.addresses.find(task.0) {
                Some(block) => {
                    let at = at - blocks.blocks[block as usize].addr;
                    blocks.skip.push(block, at..at + len);
                }
                // The first idle task (init_task) is in no block.
                None => blocks.stale_ranges.push(at..at.saturating_add(len)),
            }
        }
    }
}

/// A stack that belongs to no task waits for a grace period. Its first words are an rcu_head that
/// links to others that wait (struct vm_stack, kernel/fork.c, 5.18 on).
fn skip_stacks_of_nobody<M: StoppedMemory>(
    blocks: &mut Blocks<'_, M>,
    kernel: &Kernel,
    tasks: &Tasks,
    areas: &[vmap::Area],
) {
    let head = kernel.btf.as_ref().and_then(|b| b.size_of("vm_stack")).unwrap_or(0);
    let owned: HashSet<u64> = tasks.stacks.iter().map(|s| s.base).collect();
    let mut is_stack_site = allocation_sites::stack_sites(kernel, blocks.allocations);
    // If an allocation was not seen, its vm_struct tells who asked for the area.
    let memory = blocks.memory;
    let callers =
        areas.iter().filter(|area| area.caller(kernel, memory).is_some_and(allocation_sites::is_stack_caller));
    let unseen: HashSet<u64> = callers.filter_map(|area| Some(area.block?.0)).collect();
    for (i, b) in blocks.blocks.iter().enumerate().filter(|(_, b)| b.kind == Kind::Vmalloc) {
        let is_stack = if b.seen() { is_stack_site(blocks.object(b)) } else { unseen.contains(&b.addr) };
        if is_stack && !owned.contains(&b.addr) {
            blocks.skip.push(i as u32, head.min(b.size)..b.size);
        }
    }
}

/// Kernel threads that serve requests in a loop, and hold no request while they wait. Their frames
/// and registers still hold the last request. It was one of two things: a freed object
/// (`kthread_create_info`, kernel/kthread.c), or a variable on the stack of a task that may be gone
/// (`struct req`, drivers/base/devtmpfs.c). devtmpfs_work_loop() is inlined into devtmpfsd() in
/// 5.10.
///
/// An idle task that is not running has nothing to do either. Interrupts and the scheduler have
/// left words in its frames (kernel/sched/idle.c).
const WAIT_LOOPS: [&str; 5] = ["kthreadd", "devtmpfs_work_loop", "devtmpfsd", "do_idle", "cpu_startup_entry"];

/// rbx, rbp, r12 to r15 (System V ABI, x86-64).
const PRESERVED: [Register; 6] = [3, 5, 12, 13, 14, 15];

/// Where __switch_to_asm() saves these registers, in bytes from the stack pointer of a sleeping
/// task. The return address follows them (`struct inactive_task_frame`,
/// arch/x86/include/asm/switch_to.h).
const SWITCH_FRAME: [(Register, u64); 6] = [(15, 0), (14, 8), (13, 16), (12, 24), (3, 32), (5, 40)];
const SWITCH_RETURN: u64 = 48;

/// Stale words that kthread() leaves on the stacks of kernel threads (kernel/kthread.c, 5.10 to
/// 7.3).
///
/// kthread() never returns. Once it has called the thread's function, it needs no register value
/// that `struct kthread` does not hold as well. But its callees save its registers, and kthread()
/// itself saves those of ret_from_fork(). These slots keep the address of the `struct
/// kthread_create_info`, which is freed by then. They also keep the address of the stack of the
/// creating task. The next object at such an address would seem to be referenced.
struct Threads<'a, M> {
    code: Code<'a, M>,
    /// Virtual addresses of the code of kthread().
    kthread: Range<u64>,
    /// Virtual addresses of the code of [`WAIT_LOOPS`].
    wait_loops: Vec<Range<u64>>,
    /// Offset of `flags` in `task_struct`.
    flags: u64,
}

impl<'a, M: StoppedMemory> Threads<'a, M> {
    fn of(kernel: &'a Kernel, memory: &'a M) -> Option<Threads<'a, M>> {
        let code = |name| {
            let at = kernel.symbol(name)?.0;
            Some(at + 1..at + kernel.symbols.resolve(at)?.size)
        };
        Some(Threads {
            code: Code::new(kernel, memory)?,
            kthread: code("kthread")?,
            wait_loops: WAIT_LOOPS.iter().filter_map(|name| code(name)).collect(),
            flags: kernel.offset_of("task_struct", "flags")?,
        })
    }

    /// The virtual ranges of a stack that are stale for this reason. The task sleeps with its stack
    /// pointer at `sp`.
    fn stale_words(
        &self,
        blocks: &Blocks<'_, M>,
        kernel: &Kernel,
        task: VirtAddr,
        sp: u64,
        stack: Range<u64>,
    ) -> Option<Vec<Range<u64>>> {
        let memory = blocks.memory;
        let (bottom, top) = (stack.start, stack.end);
        let read = |at: u64| kernel.read_u64(memory, VirtAddr(at)).ok().filter(|_| (bottom..top).contains(&at));
        if kernel.read_u32(memory, task.offset(self.flags)).ok()? & PF_KTHREAD == 0 {
            return None;
        }
        // With this check, all addresses below that are derived from it are on the stack.
        let sp = Some(sp).filter(|sp| (bottom..top.saturating_sub(SWITCH_RETURN + 8)).contains(sp))?;
        let registers = Registers { ip: read(sp + SWITCH_RETURN)?, sp: sp + SWITCH_RETURN + 8, bp: read(sp + 40)? };
        let frames = frames::frames(|at| self.code.rule(at), registers, read);
        let wait_loop = frames.iter().find(|f| self.wait_loops.iter().any(|code| code.contains(&f.ip)));
        if let Some(frame) = wait_loop
            && let Some(Call::Scheduler) = called(kernel, memory, frame.ip)
        {
            return Some(vec![stack]);
        }
        let kthread = frames.iter().position(|f| self.kthread.contains(&f.ip))?;
        match called(kernel, memory, frames[kthread].ip)? {
            // kthread() has called the thread's function.
            Call::Indirect => {}
            // The thread waits to be started. The scheduler's own frames hold no references.
            Call::Scheduler => return Some(vec![stack]),
            Call::Other => return None,
        }
        // Nothing above the return address into kthread() is needed any more.
        let mut stale: Vec<Range<u64>> = Vec::new();
        stale.push(frames[kthread.checked_sub(1)?].cfa..top);
        // The first function below kthread() that saves a register saves kthread()'s value.
        let mut unsaved = PRESERVED.to_vec();
        for frame in frames[..kthread].iter().rev() {
            let start = self.code.function(frame.ip.wrapping_sub(1));
            let Some((saved, all)) = start.and_then(|start| self.saved(kernel, memory, start, frame.ip)) else {
                unsaved.clear();
                break;
            };
            for (register, below) in saved {
                if unsaved.contains(&register) {
                    let at = frame.cfa.wrapping_sub(below);
                    stale.push(at..at.saturating_add(8));
                }
                unsaved.retain(|&r| r != register);
            }
            if !all {
                unsaved.clear();
                break;
            }
        }
        // The guest controls these values, so they may be any address.
        stale.retain(|r| bottom <= r.start && r.end <= top);
        stale.extend(SWITCH_FRAME.iter().filter(|(r, _)| unsaved.contains(r)).map(|(_, at)| sp + at..sp + at + 8));
        Some(stale)
    }

    /// The registers that a function has saved when it executes `ip`, and whether these are all.
    /// Each register has the distance in bytes from its slot to the caller's frame.
    ///
    /// `None` if that is not certain:
    ///
    /// - it saves a register twice
    /// - it adjusts the stack pointer in more than one way
    fn saved(
        &self,
        kernel: &Kernel,
        memory: &impl GuestMemory,
        function: u64,
        ip: u64,
    ) -> Option<(Vec<(Register, u64)>, bool)> {
        let room = |rule: Rule| u64::try_from(rule.sp_offset).ok().filter(|_| rule.sp == Base::Sp);
        let has_frame_pointer = |rule: Rule| (rule.sp, rule.sp_offset) == (Base::Bp, FRAME_POINTER);
        let last = self.code.rule(ip.checked_sub(1)?)?;
        let now = if has_frame_pointer(last) { u64::MAX } else { room(last)? };
        let mut before = room(self.code.rule(function)?)?;
        let mut saved: Vec<(Register, u64)> = Vec::new();
        for (at, rule) in self.code.changes(function.saturating_add(1)..ip)? {
            if has_frame_pointer(rule) && has_frame_pointer(last) {
                let mut code = [0; prologue::SET_FRAME_POINTER.len() + prologue::LENGTH];
                let from = at.checked_sub(prologue::SET_FRAME_POINTER.len() as u64)?;
                let until = usize::try_from(ip - from).unwrap_or(usize::MAX).min(code.len());
                kernel.read(memory, VirtAddr(from), &mut code[..until]).ok()?;
                let pushes = code[..until].strip_prefix(&prologue::SET_FRAME_POINTER)?;
                let (pushed, all) = prologue::pushes(pushes);
                let places = (1..).map(|n| FRAME_POINTER as u64 + 8 * n);
                saved.extend(pushed.into_iter().zip(places));
                return Some((saved, all));
            }
            let after = room(rule)?;
            let mut code = [0; 2];
            kernel.read(memory, VirtAddr(at.wrapping_sub(2)), &mut code).ok()?;
            let pushed = match code {
                [0x41, r @ 0x54..=0x57] => Some(r - 0x50 + 8),
                [_, r @ (0x53 | 0x55)] => Some(r - 0x50),
                _ => None,
            };
            match pushed.filter(|_| after == before + 8) {
                Some(register) if saved.iter().any(|(r, _)| *r == register) => return None,
                Some(register) => saved.push((register, after)),
                None if after > before && before == RETURN_ADDRESS => return None,
                None => {}
            }
            before = after;
        }
        saved.retain(|(_, at)| *at <= now);
        Some((saved, !has_frame_pointer(last)))
    }
}

/// The target of a call instruction.
enum Call {
    /// The address in a register, possibly through a thunk.
    Indirect,
    /// A function of the scheduler.
    Scheduler,
    /// Another function.
    Other,
}

/// Classifies the call instruction before a return address.
fn called(kernel: &Kernel, memory: &impl GuestMemory, ret: u64) -> Option<Call> {
    let mut code = [0; 5];
    kernel.read(memory, VirtAddr(ret.wrapping_sub(5)), &mut code).ok()?;
    match code {
        [_, _, _, 0xff, 0xd0..=0xd7] => Some(Call::Indirect),
        [0xe8, to @ ..] => {
            let target = ret.wrapping_add_signed(i32::from_le_bytes(to).into());
            let text = kernel.symbol("_stext")?.0..kernel.symbol("_etext")?.0;
            // A thunk may have other names as well, such as __pi___x86_indirect_thunk_rax.
            let is_named = |start: &str| kernel.symbols.names(target).any(|name| name.starts_with(start));
            Some(match () {
                // Thunks that the kernel makes at boot are in module space (its_allocate_thunk(),
                // arch/x86/kernel/alternative.c, 6.15 on).
                () if is_named("__x86_indirect_") || !text.contains(&target) => Call::Indirect,
                () if is_named("schedule") => Call::Scheduler,
                () => Call::Other,
            })
        }
        _ => None,
    }
}
