//! The code of a stopped kernel and of its modules: unwind rules, and the starts of functions.

use crate::Kernel;
use crate::memory::{StoppedMemory, VirtAddr, u64_at};
use crate::modules;
use crate::unwind::orc::{Orc, Rule, Table};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

/// `sizeof(Elf64_Sym)`, and the type of a function in `st_info` (include/uapi/linux/elf.h).
const ELF_SYM: usize = 24;
const STT_FUNC: u8 = 2;
/// The most symbols and unwind entries of modules that are read in total. A booted kernel needs
/// those of a few modules, whose functions kernel threads run.
const MAX_READ: u64 = 4 << 20;

/// The function that contains an address, or `None`. Results are kept because many threads run the
/// same function.
type Functions = HashMap<u64, Option<Range<u64>>>;

/// Code by virtual address. The tables of modules are read from the guest on demand.
pub struct Code<'a, M> {
    kernel: &'a Kernel,
    memory: &'a M,
    orc: &'a Orc,
    image: Range<u64>,
    /// Virtual ranges of modules, each with the address of its `struct module`.
    modules: Vec<(Range<u64>, VirtAddr)>,
    tables: RefCell<HashMap<VirtAddr, Option<Rc<Table>>>>,
    functions: RefCell<Functions>,
    /// What is left of [`MAX_READ`].
    left: Cell<u64>,
}

impl<'a, M: StoppedMemory> Code<'a, M> {
    /// Returns `None` for a kernel without unwind tables.
    pub fn new(kernel: &'a Kernel, memory: &'a M) -> Option<Code<'a, M>> {
        let modules = modules::list(kernel, memory).into_iter();
        let ranges =
            modules.map(|at| modules::ranges(kernel, memory, at).unwrap_or_default().into_iter().map(move |r| (r, at)));
        Some(Code {
            kernel,
            memory,
            orc: kernel.orc.as_ref()?,
            image: kernel.symbols.lookup("_text")?..kernel.symbols.lookup("_end")?,
            modules: ranges.flatten().collect(),
            tables: RefCell::default(),
            functions: RefCell::default(),
            left: Cell::new(MAX_READ),
        })
    }

    /// The unwind rule at a virtual address of code.
    pub fn rule(&self, at: u64) -> Option<Rule> {
        match self.image.contains(&at) {
            true => self.orc.lookup(at),
            false => self.orc.lookup_in(&*self.table(self.module(at)?)?, at),
        }
    }

    /// The addresses in a range of one function at which the rule changes, each with the new rule.
    pub fn changes(&self, range: Range<u64>) -> Option<Vec<(u64, Rule)>> {
        Some(match self.image.contains(&range.start) {
            true => self.orc.changes(range).collect(),
            false => self.orc.changes_in(&*self.table(self.module(range.start)?)?, range).collect(),
        })
    }

    /// The start of the function that contains a virtual address.
    pub fn function(&self, at: u64) -> Option<u64> {
        if self.image.contains(&at) {
            return Some(at.wrapping_sub(self.kernel.symbols.resolve(at)?.offset));
        }
        let module = self.module(at)?;
        let known = self.functions.borrow().get(&at).cloned();
        let function = known.unwrap_or_else(|| {
            let function = self.function_in(module, at);
            self.functions.borrow_mut().insert(at, function.clone());
            function
        });
        function.map(|f| f.start)
    }

    fn module(&self, at: u64) -> Option<VirtAddr> {
        self.modules.iter().find(|(range, _)| range.contains(&at)).map(|(_, module)| *module)
    }

    fn table(&self, module: VirtAddr) -> Option<Rc<Table>> {
        let mut tables = self.tables.borrow_mut();
        let read = || {
            self.take(modules::orc_count(self.kernel, self.memory, module)?)?;
            modules::read_orc(self.kernel, self.memory, module).map(Rc::new)
        };
        tables.entry(module).or_insert_with(read).clone()
    }

    /// The function of a module that contains an address, by the module's own symbols.
    fn function_in(&self, module: VirtAddr, at: u64) -> Option<Range<u64>> {
        let (table, count) = modules::symbol_table(self.kernel, self.memory, module)?;
        self.take(count)?;
        let mut symbols = vec![0; usize::try_from(count).ok()? * ELF_SYM];
        self.kernel.read(self.memory, table, &mut symbols).ok()?;
        symbols.chunks_exact(ELF_SYM).filter(|symbol| symbol[4] & 0xf == STT_FUNC).find_map(|symbol| {
            let start = u64_at(symbol, 8)?;
            Some(start..start.checked_add(u64_at(symbol, 16)?)?).filter(|function| function.contains(&at))
        })
    }

    /// Reduces what may still be read by `count`. `None` if it is not enough.
    fn take(&self, count: u64) -> Option<()> {
        self.left.set(self.left.get().checked_sub(count)?);
        Some(())
    }
}
