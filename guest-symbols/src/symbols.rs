//! The kernel's symbols, by name and by address.

use hashbrown::HashTable;
use memchr::memmem;
use std::hash::BuildHasher;

/// One symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Virtual address in the running kernel, with the slide included. Per-CPU symbols of kernels
    /// before 6.15 are offsets into the per-CPU area.
    pub addr: u64,
    /// The letter of nm: `T`, `t`, `D`, ...
    pub kind: u8,
    /// Its name.
    pub name: &'a str,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    addr: u64,
    name: u32,
    len: u16,
    kind: u8,
}

/// An address as the kernel's `%pS` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved<'a> {
    /// The name of the symbol.
    pub name: &'a str,
    /// Bytes from the symbol to the address.
    pub offset: u64,
    /// Bytes from the symbol to the next one at another address.
    pub size: u64,
}

/// A symbol table. It does not change once it is built.
#[derive(Default)]
pub struct SymbolTable {
    /// Ascending by address. Aliases keep the order in which they were added, as in kallsyms.
    entries: Vec<Entry>,
    names: String,
    by_name: HashTable<u32>,
    hasher: hashbrown::DefaultHashBuilder,
}

/// Text from a guest. Invalid UTF-8, terminal control characters and line ends become U+FFFD.
pub fn readable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace(char::is_control, "\u{fffd}")
}

/// `linux_banner` (init/version-timestamp.c): "Linux version RELEASE (...".
pub(crate) fn find_release(image: &[u8]) -> Option<&str> {
    const START: &[u8] = b"Linux version ";
    memmem::find_iter(image, START).find_map(|at| {
        let rest = &image[at + START.len()..];
        let end = rest.iter().take(64).position(|&b| b == b' ')?;
        let release = std::str::from_utf8(&rest[..end]).ok().filter(|r| !r.contains(char::is_control))?;
        (release.starts_with(|c: char| c.is_ascii_digit()) && rest.get(end + 1) == Some(&b'(')).then_some(release)
    })
}

/// Collects symbols for a [`SymbolTable`].
#[derive(Default)]
pub struct SymbolTableBuilder {
    entries: Vec<Entry>,
    names: String,
}

impl SymbolTableBuilder {
    /// A builder with room for `n` symbols.
    pub fn with_capacity(n: usize) -> Self {
        SymbolTableBuilder { entries: Vec::with_capacity(n), names: String::with_capacity(n * 24) }
    }

    /// Adds a symbol. Three kinds of names are left out: longer than 64 KiB, beyond 4 GiB in total,
    /// and not one word.
    pub fn push(&mut self, addr: u64, kind: u8, name: &str) {
        // All bytes are tested without an early exit, which the compiler vectorizes.
        let unprintable = name.bytes().fold(false, |unprintable, b| unprintable | !(b' '..0x7f).contains(&b));
        if unprintable && name.contains(char::is_control) {
            return;
        }
        let (Ok(at), Ok(len)) = (u32::try_from(self.names.len()), u16::try_from(name.len())) else {
            return;
        };
        self.names.push_str(name);
        self.entries.push(Entry { addr, name: at, len, kind });
    }

    /// Sorts and indexes the symbols.
    pub fn build(mut self) -> SymbolTable {
        // The sort is stable. kallsyms prints the first of several names at one address.
        self.entries.sort_by_key(|e| e.addr);
        let mut table = SymbolTable {
            by_name: HashTable::with_capacity(self.entries.len()),
            entries: self.entries,
            names: self.names,
            hasher: Default::default(),
        };
        for i in 0..table.entries.len() {
            let name = table.name(&table.entries[i]);
            let hash = table.hasher.hash_one(name);
            // The first symbol of a name wins. `all` finds the others.
            let SymbolTable { by_name, entries, names, hasher } = &mut table;
            let of = |i: u32| {
                let e = &entries[i as usize];
                &names[e.name as usize..][..e.len as usize]
            };
            let name = of(i as u32);
            by_name.entry(hash, |&j| of(j) == name, |&j| hasher.hash_one(of(j))).or_insert(i as u32);
        }
        table
    }
}

impl SymbolTable {
    fn name(&self, e: &Entry) -> &str {
        &self.names[e.name as usize..][..e.len as usize]
    }

    fn symbol(&self, e: &Entry) -> Symbol<'_> {
        Symbol { addr: e.addr, kind: e.kind, name: self.name(e) }
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Host memory that it uses, in bytes.
    pub fn size(&self) -> usize {
        self.names.capacity()
            + self.entries.capacity() * size_of::<Entry>()
            + self.by_name.capacity() * size_of::<u32>()
    }

    /// All symbols, ascending by address.
    pub fn iter(&self) -> impl Iterator<Item = Symbol<'_>> {
        self.entries.iter().map(|e| self.symbol(e))
    }

    /// The address of the first symbol of that name.
    pub fn lookup(&self, name: &str) -> Option<u64> {
        self.by_name
            .find(self.hasher.hash_one(name), |&i| self.name(&self.entries[i as usize]) == name)
            .map(|&i| self.entries[i as usize].addr)
    }

    /// The symbol that contains `addr`, chosen as in kallsyms_lookup() (kernel/kallsyms.c). It is
    /// the last symbol at or below the address, and the first of its aliases.
    pub fn resolve(&self, addr: u64) -> Option<Resolved<'_>> {
        let after = self.entries.partition_point(|e| e.addr <= addr);
        let found = self.entries[..after].last()?.addr;
        let first = self.entries[..after].partition_point(|e| e.addr < found);
        let size = self.entries.get(after).map_or(0, |e| e.addr - found);
        Some(Resolved { name: self.name(&self.entries[first]), offset: addr - found, size })
    }

    /// All names at an address. [`SymbolTable::resolve`] returns the first of them.
    pub fn names(&self, addr: u64) -> impl Iterator<Item = &str> {
        let first = self.entries.partition_point(|e| e.addr < addr);
        self.entries[first..].iter().take_while(move |e| e.addr == addr).map(|e| self.name(e))
    }

    /// Whether the symbols ascend. They do not if [`SymbolTable::slide`] wrapped some around the
    /// end of the address space. Lookups then find nothing.
    pub(crate) fn is_sorted(&self) -> bool {
        self.entries.is_sorted_by_key(|e| e.addr)
    }

    /// Moves every symbol by `by` bytes, with wrapping. It is for tables whose addresses are not
    /// those of the running kernel.
    pub fn slide(&mut self, by: u64) {
        // Low addresses are per-CPU offsets, which do not slide.
        for e in self.entries.iter_mut().filter(|e| (e.addr as i64) < 0) {
            e.addr = e.addr.wrapping_add(by);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> SymbolTable {
        let mut b = SymbolTableBuilder::default();
        b.push(0xffff_0030, b't', "third");
        b.push(0xffff_0010, b'T', "first");
        b.push(0xffff_0010, b'T', "alias");
        b.push(0xffff_0030, b't', "first");
        b.build()
    }

    #[test]
    fn resolves_to_the_first_alias_with_size() {
        let t = table();
        assert_eq!(t.resolve(0xffff_0018), Some(Resolved { name: "first", offset: 8, size: 0x20 }));
        assert_eq!(t.resolve(0xffff_0030).unwrap().name, "third");
        assert_eq!(t.resolve(0xffff_000f), None);
        assert_eq!(t.names(0xffff_0010).collect::<Vec<_>>(), ["first", "alias"]);
        assert_eq!(t.names(0xffff_0018).chain(t.names(0xffff_0040)).next(), None);
    }

    /// Otherwise a guest could add lines to a report.
    #[test]
    fn names_are_of_one_line() {
        let mut b = SymbolTableBuilder::default();
        ["good", "b\nad", "b\u{7f}ad", "b\u{9b}ad", "g\u{f6}\u{f6}d"].iter().for_each(|name| b.push(0, b't', name));
        assert_eq!(b.build().iter().map(|s| s.name).collect::<Vec<_>>(), ["good", "g\u{f6}\u{f6}d"]);
        assert_eq!(readable(b"a\nb\xffc \x1b[1m"), "a\u{fffd}b\u{fffd}c \u{fffd}[1m");
    }

    #[test]
    fn looks_up_the_lowest_of_equal_names() {
        let t = table();
        assert_eq!(t.lookup("first"), Some(0xffff_0010));
        assert_eq!(t.lookup("alias"), Some(0xffff_0010));
        assert_eq!(t.lookup("none"), None);
        assert_eq!(t.len(), 4);
    }
}
