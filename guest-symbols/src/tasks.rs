//! Tasks and their stacks (include/linux/sched.h).

use crate::Kernel;
use crate::corruption::{self, Corruption, Unreadable};
use crate::memory::{GuestMemory, VirtAddr};
use crate::percpu::PerCpu;
use std::collections::HashSet;

/// The most tasks that are read (PID_MAX_LIMIT is 4 Mi).
const MAX_TASKS: usize = 4 << 20;
/// NR_CACHED_STACKS (kernel/fork.c).
const CACHED_STACKS: u64 = 2;

/// The part of a task's stack that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// The task is not on a CPU. Its stack is in use from this virtual address upwards.
    From(u64),
    /// The task is on a CPU. Its stack pointer is not known here.
    Running,
    /// The stack is kept for a later fork and belongs to no task.
    Cached,
}

/// All tasks.
#[derive(Debug, Default)]
pub struct Tasks {
    /// Addresses of every `task_struct`: all threads, and the idle tasks.
    pub tasks: Vec<VirtAddr>,
    /// Their stacks.
    pub stacks: Vec<TaskStack>,
}

/// A stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskStack {
    /// Its lowest virtual address.
    pub base: u64,
    /// The address of its task. Null if it belongs to no task.
    pub task: VirtAddr,
    /// The part that is in use.
    pub state: Stack,
}

/// Walks the task lists.
///
/// # Errors
/// [`Unreadable`] if a list is corrupted.
pub fn read(kernel: &Kernel, memory: &impl GuestMemory, percpu: &PerCpu) -> Result<Tasks, Unreadable> {
    let mut found = Tasks::default();
    match walk(kernel, memory, percpu, &mut found) {
        Some(true) => Ok(found),
        Some(false) => Err(Corruption::Tasks(found.tasks.len()).into()),
        None => Err(Unreadable::NotDescribed),
    }
}

/// Walks the lists. Returns whether they could be walked to their ends. `None` if the types are not
/// known.
fn walk(kernel: &Kernel, memory: &impl GuestMemory, percpu: &PerCpu, found: &mut Tasks) -> Option<bool> {
    let task = |path| kernel.offset_of("task_struct", path);
    let (tasks, stack, sp) = (task("tasks")?, task("stack")?, task("thread.sp")?);
    let (signal, thread_node) = (task("signal")?, task("thread_node")?);
    // An int, and a byte from 7.x on.
    let btf = kernel.btf.as_ref()?;
    let on_cpu = btf.member("task_struct", "on_cpu").map(|m| (m.offset(), btf.type_size(m.type_id) == Some(1)));
    let thread_head = kernel.offset_of("signal_struct", "thread_head")?;
    let read = |at: VirtAddr| kernel.read_u64(memory, at).ok();
    let add = |found: &mut Tasks, task: VirtAddr| {
        let base = read(task.offset(stack))?;
        let running = on_cpu.is_none_or(|(at, byte)| {
            let value = kernel.read_u32(memory, task.offset(at)).unwrap_or(1);
            (if byte { value & 0xff } else { value }) != 0
        });
        let state = if running { Stack::Running } else { Stack::From(read(task.offset(sp))?) };
        found.tasks.push(task);
        found.stacks.push(TaskStack { base, task, state });
        Some(())
    };
    let init = kernel.symbol("init_task")?;
    let mut process = init;
    let mut seen = HashSet::new();
    let mut of_process = |found: &mut Tasks, process: VirtAddr| {
        // These are all threads of the process. The group leader is one of them. init_task is in no
        // list.
        add(found, process)?;
        let head = VirtAddr(read(process.offset(signal))?).offset(thread_head);
        let (threads, whole) = corruption::circle(kernel, memory, head, MAX_TASKS);
        threads.iter().try_for_each(|node| add(found, VirtAddr(node.0.wrapping_sub(thread_node))))?;
        let next = VirtAddr(read(process.offset(tasks))?.wrapping_sub(tasks));
        (whole && seen.insert(process) && found.tasks.len() <= MAX_TASKS).then_some(next)
    };
    loop {
        match of_process(found, process) {
            Some(next) if next == init => break,
            Some(next) => process = next,
            None => return Some(false),
        }
    }
    for cpu in 0..percpu.offsets.len() {
        let at = |name, i| Some(percpu.address(cpu, kernel.symbol(name)?.0)?.offset(8 * i));
        if let Some(idle) = at("idle_threads", 0).and_then(read).filter(|&t| t != 0) {
            // An idle task that cannot be read is a corruption.
            if add(found, VirtAddr(idle)).is_none() {
                return Some(false);
            }
        }
        for i in 0..CACHED_STACKS {
            let vm = at("cached_stacks", i).and_then(read).filter(|&v| v != 0);
            let addr = vm.and_then(|vm| read(VirtAddr(vm).offset(kernel.offset_of("vm_struct", "addr")?)));
            if let Some(base) = addr {
                found.stacks.push(TaskStack { base, task: VirtAddr(0), state: Stack::Cached });
            }
        }
    }
    Some(true)
}
