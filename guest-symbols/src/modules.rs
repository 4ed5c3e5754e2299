//! Loadable modules: where their code is, and its symbols (include/linux/module.h).

use crate::Kernel;
use crate::memory::{GuestMemory, VirtAddr, u32_at, u64_at};
use crate::symbols::{Resolved, Symbol, SymbolTable, SymbolTableBuilder};
use crate::unwind::orc::Table;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// MODULE_NAME_LEN.
const NAME_LEN: usize = 56;
/// The most symbols or names of a module that are accepted.
const MAX_SYMBOLS: u64 = 1 << 20;
const MAX_STRINGS: usize = 64 << 20;
/// KSYM_NAME_LEN since 6.1. Before that it was 128.
const MAX_NAME: usize = 512;
/// The most entries of a list that are read.
const MAX_LISTED: usize = 1 << 12;
/// The most unwind entries of a module that are accepted.
const MAX_ORCS: u64 = 1 << 20;
/// `sizeof(struct orc_entry)`.
const ORC_ENTRY: usize = 6;
/// `sizeof(Elf64_Sym)`.
const ELF_SYM: usize = 24;

/// One module at the time when it was read.
pub struct Module {
    /// Its name. Empty for generated code.
    pub name: String,
    /// Virtual ranges of all its parts, including the init parts while they exist.
    pub ranges: Vec<Range<u64>>,
    /// Its unwind table, if the kernel uses ORC. Snapshots do not keep it, because their stacks are
    /// already unwound.
    pub orc: Option<Arc<Table>>,
    symbols: SymbolTable,
}

impl Module {
    /// Reads `struct module` at `at`.
    pub fn read(kernel: &Kernel, memory: &impl GuestMemory, at: VirtAddr) -> Option<Module> {
        let name_at = kernel.offset_of("module", "name")?;
        let ranges = ranges(kernel, memory, at)?;
        let mut symbols = ends(&ranges);
        read_symbols(kernel, memory, at, &ranges, &mut symbols);
        Some(Module {
            name: kernel.read_string(memory, at.offset(name_at), NAME_LEN),
            ranges,
            orc: read_orc(kernel, memory, at).map(Arc::new),
            symbols: symbols.build(),
        })
    }

    /// Reads `struct bpf_ksym` at `at` (include/linux/bpf.h, 5.8 on). This is generated code, read
    /// as a module without a name. Its symbol is named as `%pS` prints it.
    pub fn read_bpf(kernel: &Kernel, memory: &impl GuestMemory, at: VirtAddr) -> Option<Module> {
        let field = |name| Some(at.offset(kernel.offset_of("bpf_ksym", name)?));
        let word = |name| kernel.read_u64(memory, field(name)?).ok();
        let (start, end) = (word("start")?, word("end")?);
        let name = kernel.read_string(memory, field("name")?, MAX_NAME);
        if start >= end || name.is_empty() {
            return None;
        }
        let symbol = Symbol { addr: start, kind: b't', name: &name };
        Some(Module::from_parts(String::new(), std::iter::once(start..end).collect(), [symbol]))
    }

    /// Makes a module from the parts of an earlier one. `symbols` are those that
    /// [`Module::symbols`] returned.
    pub fn from_parts<'a>(
        name: String,
        ranges: Vec<Range<u64>>,
        symbols: impl IntoIterator<Item = Symbol<'a>>,
    ) -> Module {
        let mut table = ends(&ranges);
        symbols.into_iter().for_each(|s| table.push(s.addr, s.kind, s.name));
        Module { name, ranges, orc: None, symbols: table.build() }
    }

    /// Its symbols, ascending by virtual address.
    pub fn symbols(&self) -> impl Iterator<Item = Symbol<'_>> {
        self.symbols.iter().filter(|s| !s.name.is_empty())
    }

    /// The symbol of an address inside the module.
    pub fn resolve(&self, addr: u64) -> Option<Resolved<'_>> {
        if !self.ranges.iter().any(|r| r.contains(&addr)) {
            return None;
        }
        self.symbols.resolve(addr).filter(|r| !r.name.is_empty())
    }

    /// Whether both are the same code at the same address.
    pub fn is_same(&self, other: &Module) -> bool {
        self.name == other.name && self.ranges == other.ranges && self.symbols.iter().eq(other.symbols.iter())
    }

    /// Whether their ranges overlap.
    pub fn overlaps(&self, other: &Module) -> bool {
        self.ranges.iter().any(|a| other.ranges.iter().any(|b| a.start < b.end && b.start < a.end))
    }

    /// Host memory that it uses, in bytes, without its unwind table.
    pub fn size(&self) -> usize {
        size_of::<Module>() + self.ranges.len() * size_of::<Range<u64>>() + self.symbols.size()
    }

    /// Number of its symbols.
    pub fn symbol_count(&self) -> usize {
        self.symbols.len() - self.ranges.len()
    }
}

/// Whether later modules cover all ranges of each module, so that it must have been unloaded.
/// `modules` are in load order.
pub fn replaced<'a>(modules: impl DoubleEndedIterator<Item = &'a Module>) -> Vec<bool> {
    // Disjoint ranges, by their starts.
    let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
    let mut take = |range: &Range<u64>| {
        let before = taken.range(..=range.start).next_back().map(|(s, e)| (*s, *e)).filter(|b| b.1 >= range.start);
        let (start, mut end) = before.map_or((range.start, range.end), |(s, e)| (s, e.max(range.end)));
        while let Some((&next, &its_end)) = taken.range(start + 1..=end).next() {
            end = end.max(its_end);
            taken.remove(&next);
        }
        let was_taken = before.is_some_and(|b| b.1 >= range.end);
        taken.insert(start, end);
        was_taken
    };
    let mut replaced: Vec<bool> =
        modules.rev().map(|m| m.ranges.iter().filter(|r| !r.is_empty()).fold(true, |all, r| take(r) & all)).collect();
    replaced.reverse();
    replaced
}

/// The modules that contained the given addresses. `modules` are in load order. Each of the
/// `places` is an address, and the number of modules that were loaded at that time. The last of
/// those that contains the address is meant.
pub fn at_places<'a>(modules: impl Iterator<Item = &'a Module>, places: Vec<(u64, usize)>) -> HashSet<usize> {
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum Event {
        End(usize),
        Start(usize),
        Place(usize),
    }
    let mut events: Vec<(u64, Event)> = places.into_iter().map(|(at, loaded)| (at, Event::Place(loaded))).collect();
    for (i, module) in modules.enumerate() {
        for range in module.ranges.iter().filter(|r| !r.is_empty()) {
            events.extend([(range.start, Event::Start(i)), (range.end, Event::End(i))]);
        }
    }
    events.sort_unstable();
    // Modules that contain the address, and in how many of their parts.
    let mut here: BTreeMap<usize, u32> = BTreeMap::new();
    let mut found = HashSet::new();
    for (_, event) in events {
        match event {
            Event::Start(i) => *here.entry(i).or_default() += 1,
            Event::End(i) => {
                let parts = here.entry(i).or_insert(1);
                *parts -= 1;
                if *parts == 0 {
                    here.remove(&i);
                }
            }
            Event::Place(loaded) => found.extend(here.range(..loaded).next_back().map(|(i, _)| *i)),
        }
    }
    found
}

/// Virtual addresses of the `struct module` of all loaded modules (`modules`, kernel/module/main.c;
/// up to 5.18 kernel/module.c).
pub fn list(kernel: &Kernel, memory: &impl GuestMemory) -> Vec<VirtAddr> {
    entries(kernel, memory, "modules", kernel.offset_of("module", "list"))
}

/// The entries of the list whose head is the variable `head`. `links` is the offset of the links in
/// an entry.
pub fn entries(kernel: &Kernel, memory: &impl GuestMemory, head: &str, links: Option<u64>) -> Vec<VirtAddr> {
    let (Some(head), Some(links)) = (kernel.symbol(head), links) else { return Vec::new() };
    let next = |at: &VirtAddr| kernel.read_u64(memory, *at).ok().map(VirtAddr);
    std::iter::successors(next(&head), next)
        .take_while(|at| *at != head && at.is_kernel())
        .take(MAX_LISTED)
        .map(|at| VirtAddr(at.0.wrapping_sub(links)))
        .collect()
}

/// A table with the ends of all parts. The last symbol of a part then ends with it, as in
/// find_kallsyms_symbol().
fn ends(ranges: &[Range<u64>]) -> SymbolTableBuilder {
    let mut symbols = SymbolTableBuilder::default();
    ranges.iter().for_each(|range| symbols.push(range.end, b'?', ""));
    symbols
}

/// Base and size of each part. They are in `mem[]` from 6.4 on, and in `core_layout` and
/// `init_layout` before.
pub(crate) fn ranges(kernel: &Kernel, memory: &impl GuestMemory, at: VirtAddr) -> Option<Vec<Range<u64>>> {
    let btf = kernel.btf.as_ref()?;
    let mut places = Vec::new();
    if let Some(mem) = btf.member("module", "mem") {
        let size = btf.size_of("module_memory")?;
        let (base, len) = (btf.offset_of("module_memory", "base")?, btf.offset_of("module_memory", "size")?);
        places.extend(
            (0..btf.array_len(mem.type_id)?.min(16)).map(|i| mem.offset() + i * size).map(|o| (o + base, o + len)),
        );
    } else {
        for part in ["core_layout", "init_layout"] {
            places.push((
                btf.offset_of("module", &format!("{part}.base"))?,
                btf.offset_of("module", &format!("{part}.size"))?,
            ));
        }
    }
    let mut ranges = Vec::new();
    for (base, len) in places {
        let base = kernel.read_u64(memory, at.offset(base)).ok()?;
        let len = u64::from(kernel.read_u32(memory, at.offset(len)).ok()?);
        if base != 0 && len != 0 {
            ranges.push(base..base.checked_add(len)?);
        }
    }
    Some(ranges)
}

/// Number of unwind entries of the `struct module` at `at`. `None` if there are none or too many.
pub(crate) fn orc_count(kernel: &Kernel, memory: &impl GuestMemory, at: VirtAddr) -> Option<u64> {
    let count = kernel.read_u32(memory, at.offset(kernel.offset_of("module", "arch.num_orcs")?)).ok()?;
    Some(u64::from(count)).filter(|count| (1..=MAX_ORCS).contains(count))
}

/// Reads the unwind table in `struct mod_arch_specific` (arch/x86/include/asm/module.h).
/// unwind_module_init() sorts it before the module's code runs.
pub(crate) fn read_orc(kernel: &Kernel, memory: &impl GuestMemory, at: VirtAddr) -> Option<Table> {
    let field = |path| Some(at.offset(kernel.offset_of("module", path)?));
    let count = orc_count(kernel, memory, at)?;
    let ips_at = VirtAddr(kernel.read_u64(memory, field("arch.orc_unwind_ip")?).ok()?);
    let entries_at = VirtAddr(kernel.read_u64(memory, field("arch.orc_unwind")?).ok()?);
    let mut ips = vec![0; count as usize * 4];
    let mut entries = vec![0; count as usize * ORC_ENTRY];
    kernel.read(memory, ips_at, &mut ips).ok()?;
    kernel.read(memory, entries_at, &mut entries).ok()?;
    Table::new(ips_at.0, &ips, &entries)
}

/// Address and number of the symbols (`Elf64_Sym`) of the `struct module` at `at`.
pub(crate) fn symbol_table(kernel: &Kernel, memory: &impl GuestMemory, at: VirtAddr) -> Option<(VirtAddr, u64)> {
    let field = |path| kernel.offset_of("mod_kallsyms", path);
    let kallsyms = VirtAddr(kernel.read_u64(memory, at.offset(kernel.offset_of("module", "kallsyms")?)).ok()?);
    let symtab = kernel.read_u64(memory, kallsyms.offset(field("symtab")?)).ok()?;
    let count = u64::from(kernel.read_u32(memory, kallsyms.offset(field("num_symtab")?)).ok()?).min(MAX_SYMBOLS);
    Some((VirtAddr(symtab), count))
}

fn read_symbols(
    kernel: &Kernel,
    memory: &impl GuestMemory,
    at: VirtAddr,
    ranges: &[Range<u64>],
    symbols: &mut SymbolTableBuilder,
) -> Option<()> {
    let field = |path| kernel.offset_of("mod_kallsyms", path);
    let kallsyms = VirtAddr(kernel.read_u64(memory, at.offset(kernel.offset_of("module", "kallsyms")?)).ok()?);
    let (symtab, count) = symbol_table(kernel, memory, at)?;
    let strtab = VirtAddr(kernel.read_u64(memory, kallsyms.offset(field("strtab")?)).ok()?);
    let mut table = vec![0; count as usize * ELF_SYM];
    kernel.read(memory, symtab, &mut table).ok()?;
    // The length of the string table is not stored. It is read up to the end of the last name.
    let last_name = table.chunks_exact(ELF_SYM).filter_map(|s| u32_at(s, 0)).max()? as usize;
    if last_name > MAX_STRINGS {
        return None;
    }
    let mut strings = vec![0; last_name];
    kernel.read(memory, strtab, &mut strings).ok()?;
    strings.extend(kernel.read_string(memory, strtab.offset(last_name as u64), 512).bytes());
    // Many symbols may share one name.
    let mut left = MAX_STRINGS;
    for sym in table.chunks_exact(ELF_SYM) {
        let (name, value) = (u32_at(sym, 0)? as usize, u64_at(sym, 8)?);
        let defined = sym[6] != 0 || sym[7] != 0;
        let bytes = strings.get(name..).unwrap_or(&[]);
        let bytes = &bytes[..bytes.len().min(MAX_NAME)];
        let bytes = &bytes[..memchr::memchr(0, bytes).unwrap_or(bytes.len())];
        // find_kallsyms_symbol() and is_mapping_symbol() skip unnamed symbols and .L labels too.
        if !defined || bytes.is_empty() || bytes.starts_with(b".L") || !ranges.iter().any(|r| r.contains(&value)) {
            continue;
        }
        if let Ok(name) = std::str::from_utf8(bytes) {
            left = left.checked_sub(name.len())?;
            symbols.push(value, b't', name);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(ranges: &[(u64, u64)]) -> Module {
        Module::from_parts("a".to_owned(), ranges.iter().map(|(start, end)| *start..*end).collect(), [])
    }

    #[test]
    fn what_others_lie_on_is_replaced() {
        let of = |modules: &[Module]| replaced(modules.iter());
        assert_eq!(of(&[module(&[(10, 20)]), module(&[(10, 20)])]), [true, false]);
        // Only the init part of a module that is still loaded.
        assert_eq!(of(&[module(&[(10, 20), (30, 40)]), module(&[(30, 50)])]), [false, false]);
        assert_eq!(
            of(&[module(&[(10, 20), (30, 40)]), module(&[(30, 50)]), module(&[(5, 15)]), module(&[(15, 25)])]),
            [true, false, false, false]
        );
        assert_eq!(of(&[module(&[(10, 20)]), module(&[(10, 19)]), module(&[(20, 30)])]), [false, false, false]);
    }

    /// The result is compared with a search byte by byte.
    #[test]
    fn any_ranges() {
        let mut seed = 1u64;
        let mut below = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % n
        };
        for _ in 0..if cfg!(miri) { 20 } else { 2000 } {
            let modules: Vec<Module> = (0..below(12))
                .map(|_| {
                    let mut range = || {
                        let start = below(60);
                        (start, start + below(20))
                    };
                    let ranges = [range(), range(), range()];
                    module(&ranges[..1 + below(3) as usize])
                })
                .collect();
            let found = replaced(modules.iter());
            for (i, m) in modules.iter().enumerate() {
                let later = || modules[i + 1..].iter().flat_map(|m| &m.ranges);
                let all = m.ranges.iter().cloned().flatten().all(|at| later().any(|r| r.contains(&at)));
                assert_eq!(found[i], all, "{i} of {:?}", modules.iter().map(|m| &m.ranges).collect::<Vec<_>>());
            }
            let place = (below(90), below(1 + modules.len() as u64) as usize);
            let by = modules[..place.1].iter().rposition(|m| m.ranges.iter().any(|r| r.contains(&place.0)));
            assert_eq!(at_places(modules.iter(), vec![place]), by.into_iter().collect(), "{place:?}");
        }
    }
}
