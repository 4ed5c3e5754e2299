//! Reader/writer semaphores that nobody holds.
//!
//! `rw_semaphore.owner` keeps the task that read last (rwsem_set_reader_owned,
//! kernel/locking/rwsem.c, 5.3 to 7.3). That task may be gone, and its memory may be another
//! object's.
//!
//! There are tens of thousands of semaphores, in objects of all kinds, so they are not enumerated.
//! Only a word that would be the first reference to an object is examined. It must have the flag
//! bit of such an owner.

use detector::scan::Surroundings;
use guest_symbols::Kernel;
use guest_symbols::memory::{PhysAddr, StoppedMemory, VirtAddr};

/// Flag in `owner`: the owner is, or was, a reader (RWSEM_READER_OWNED).
const READER: u64 = 1;

/// A struct with a semaphore. Such a struct is recognized by a pointer to another struct that
/// points back.
struct Home {
    name: &'static str,
    semaphores: &'static [&'static str],
    /// A member that points to another struct: its name, the other struct, and the member that it
    /// points to, if not the start.
    pointer: (&'static str, &'static str, Option<&'static str>),
    /// The member of the other struct that points to the start of this one.
    back: &'static str,
}

const HOMES: [Home; 5] = [
    Home {
        name: "inode",
        semaphores: &["i_rwsem", "i_data.i_mmap_rwsem", "i_data.invalidate_lock"],
        pointer: ("i_data.host", "inode", None),
        back: "i_data.host",
    },
    Home { name: "super_block", semaphores: &["s_umount"], pointer: ("s_root", "dentry", None), back: "d_sb" },
    Home { name: "mm_struct", semaphores: &["mmap_lock"], pointer: ("owner", "task_struct", None), back: "mm" },
    Home {
        name: "signal_struct",
        semaphores: &["exec_update_lock", "cgroup_threadgroup_rwsem"],
        pointer: ("thread_head", "task_struct", Some("thread_node")),
        back: "signal",
    },
    Home {
        name: "kernfs_root",
        semaphores: &["kernfs_rwsem", "kernfs_iattr_rwsem", "kernfs_supers_rwsem"],
        pointer: ("kn", "kernfs_node", None),
        back: "dir.root",
    },
];

/// The suffix of the names of semaphores that are variables of the kernel.
const VARIABLE: &str = "sem";

/// Offsets of members of `struct rw_semaphore`.
#[derive(Clone, Copy)]
struct Layout {
    count: u64,
    owner: u64,
    waiters: Waiters,
}

/// The waiters. They are a list whose empty head points to itself, or from 7.x on a pointer to the
/// first waiter.
#[derive(Clone, Copy)]
enum Waiters {
    List(u64),
    First(u64),
}

/// Offsets for a [`Home`]. The first two are from the start of its struct: the semaphore, and the
/// pointer. The last is from the pointer's target to the pointer back.
struct Place {
    semaphore: u64,
    pointer: u64,
    back: u64,
}

/// Recognizes stale owners of semaphores that are not held.
pub(crate) struct Semaphores<'a, M> {
    kernel: &'a Kernel,
    memory: &'a M,
    /// `None` if the kernel's semaphores have another layout without such owners
    /// (CONFIG_PREEMPT_RT).
    layout: Option<Layout>,
    places: Vec<Place>,
}

impl<'a, M: StoppedMemory> Semaphores<'a, M> {
    pub(crate) fn of(kernel: &'a Kernel, memory: &'a M) -> Self {
        let at = |member| kernel.offset_of("rw_semaphore", member);
        let waiters = at("wait_list").map(Waiters::List).or_else(|| at("first_waiter").map(Waiters::First));
        let layout = || Some(Layout { count: at("count")?, owner: at("owner")?, waiters: waiters? });
        let place = |home: &Home, semaphore| {
            let (pointer, other, target) = home.pointer;
            let target = target.map_or(Some(0), |member| kernel.offset_of(other, member))?;
            Some(Place {
                semaphore: kernel.offset_of(home.name, semaphore)?,
                pointer: kernel.offset_of(home.name, pointer)?,
                back: kernel.offset_of(other, home.back)?.wrapping_sub(target),
            })
        };
        let places = HOMES.iter().flat_map(|home| home.semaphores.iter().filter_map(move |s| place(home, s)));
        Semaphores { kernel, memory, layout: layout(), places: places.collect() }
    }

    fn word(&self, at: VirtAddr) -> Option<u64> {
        self.kernel.read_u64(self.memory, at).ok()
    }

    /// The word at the physical address `from - less + plus`.
    fn word_before(&self, from: PhysAddr, less: u64, plus: u64) -> Option<u64> {
        self.memory.read_u64(PhysAddr(from.0.checked_sub(less)?.checked_add(plus)?)).ok()
    }

    /// The semaphore whose owner would be at `at`, if its list of waiters is empty. The list head
    /// then points to itself, which gives its virtual address.
    fn by_its_list(&self, layout: Layout, at: PhysAddr) -> Option<VirtAddr> {
        let Waiters::List(list) = layout.waiters else { return None };
        Some(VirtAddr(self.word_before(at, layout.owner, list)?.wrapping_sub(list)))
    }

    /// The semaphore in a struct that another struct points to.
    fn by_its_home(&self, layout: Layout, at: PhysAddr, place: &Place) -> Option<VirtAddr> {
        let other = self.word_before(at, layout.owner + place.semaphore, place.pointer)?;
        Some(VirtAddr(self.word(VirtAddr(other).offset(place.back))?).offset(place.semaphore))
    }

    /// The semaphore that is a variable.
    fn by_its_name(&self, layout: Layout, at: PhysAddr) -> Option<VirtAddr> {
        let (text, end) = (self.kernel.symbol("_text")?, self.kernel.symbol("_end")?);
        let owner = text.offset(at.0.wrapping_sub(self.kernel.image_phys(text).0));
        let variable = self.kernel.symbols.resolve(owner.0).filter(|_| (text..end).contains(&owner))?;
        let is_semaphore = variable.offset == layout.owner && variable.name.ends_with(VARIABLE);
        is_semaphore.then(|| VirtAddr(owner.0.wrapping_sub(layout.owner)))
    }

    /// Whether its owner is at `at`, nobody holds it, and nobody waits for it.
    fn is_idle(&self, layout: Layout, semaphore: VirtAddr, owner: u64, at: PhysAddr) -> bool {
        let word = |offset| self.word(semaphore.offset(offset));
        let there = self.kernel.translate(self.memory, semaphore.offset(layout.owner)).is_ok_and(|t| t.phys == at);
        let nobody_waits = || match layout.waiters {
            Waiters::First(first) => word(first) == Some(0),
            Waiters::List(list) => {
                let empty = Some(semaphore.offset(list).0);
                word(list) == empty && word(list + 8) == empty
            }
        };
        there && word(layout.count) == Some(0) && word(layout.owner) == Some(owner) && nobody_waits()
    }
}

impl<M: StoppedMemory> Surroundings for Semaphores<'_, M> {
    fn is_stale(&self, word: u64, at: u64) -> bool {
        let Some(layout) = self.layout.filter(|_| word & READER != 0) else { return false };
        let at = PhysAddr(at);
        // This is the quick check. Nearly all of these words are not owners.
        if self.word_before(at, layout.owner, layout.count) != Some(0) {
            return false;
        }
        let idle = |semaphore: VirtAddr| self.is_idle(layout, semaphore, word, at);
        self.by_its_list(layout, at).is_some_and(idle)
            || self.by_its_name(layout, at).is_some_and(idle)
            || self.places.iter().any(|place| self.by_its_home(layout, at, place).is_some_and(idle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_symbols::memory::{GuestMemory, OwnedMemory};
    use guest_symbols::symbol_file::SymbolFile;
    use std::path::Path;

    const TEXT: u64 = 0xffff_ffff_8100_0000;
    const TEXT_PHYS: u64 = 0x20_0000;
    /// The stale owner: the former task of a reader.
    const READER_GONE: u64 = DIRECT + 0x9_8765_4340 + READER;
    const DIRECT: u64 = 0xffff_8880_0000_0000;
    const MAP: &str = "\
ffffffff81000000 T _text
ffffffff81001000 R linux_banner
ffffffff81002000 D init_top_pgt
ffffffff81006000 D test_sem
ffffffff81006040 D test_other
ffffffff81008000 B _end
";

    /// Builds BTF with these structs: names, and members with their offsets.
    fn btf(structs: &[(&str, &[(&str, u32)])]) -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut name = |s: &str| {
            let at = strings.len() as u32;
            strings.extend(s.bytes().chain([0]));
            at
        };
        let mut words = vec![name("u64"), 1 << 24, 8, 64];
        for (of, members) in structs {
            words.extend([name(of), 4 << 24 | members.len() as u32, 256]);
            members.iter().for_each(|(member, offset)| words.extend([name(member), 1, 8 * offset]));
        }
        let types: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let (len, text) = (types.len() as u32, strings.len() as u32);
        let head = [0x1_eb9f, 24, 0, len, len, text];
        head.iter().flat_map(|w: &u32| w.to_le_bytes()).chain(types).chain(strings).collect()
    }

    const WITH_LIST: &[(&str, u32)] = &[("count", 0), ("owner", 8), ("wait_list", 24)];
    const WITH_FIRST: &[(&str, u32)] = &[("count", 0), ("owner", 8), ("first_waiter", 24)];

    /// Bytes of RAM. The kernel is searched after its image, which is slow under Miri.
    const RAM: usize = if cfg!(miri) { 0x21_0000 } else { 0x80_0000 };

    /// A kernel that has such semaphores, and its memory, which the direct map covers.
    struct Guest {
        kernel: Kernel,
        memory: OwnedMemory,
    }

    impl Guest {
        fn new(semaphore: &[(&str, u32)]) -> Guest {
            let mut memory = OwnedMemory::zeroed(0, RAM);
            memory.write(TEXT_PHYS + 0x1000, b"Linux version 6.1.0-test (gcc) #1");
            // Large pages: one of 1 GiB for the direct map, one of 2 MiB for the image.
            let table = |n: u64| TEXT_PHYS + 0x2000 + 0x1000 * n;
            let mut entry = |at: u64, i: u64, value: u64| memory.write(at + 8 * i, &value.to_le_bytes());
            entry(table(0), 0x111, table(1) | 1);
            entry(table(1), 0, 0x81);
            entry(table(0), 0x1ff, table(2) | 1);
            entry(table(2), 0x1fe, table(3) | 1);
            entry(table(3), 8, TEXT_PHYS | 0x81);
            let super_block: &[(&str, u32)] = &[("s_umount", 128), ("s_root", 64)];
            let structs = [("rw_semaphore", semaphore), ("super_block", super_block), ("dentry", &[("d_sb", 40)])];
            let file = SymbolFile::from_map(Path::new("map"), MAP.as_bytes(), Some(btf(&structs))).unwrap();
            let kernel = Kernel::find(&memory, VirtAddr(TEXT), PhysAddr(TEXT_PHYS), Some(&file)).unwrap();
            Guest { kernel, memory }
        }

        /// Writes words at a physical address.
        fn write(&mut self, at: u64, words: &[u64]) -> &mut Guest {
            words.iter().zip(0..).for_each(|(word, i)| self.memory.write(at + 8 * i, &word.to_le_bytes()));
            self
        }

        /// Whether the owner of the semaphore at a physical address is stale.
        fn is_stale(&self, semaphore: u64) -> bool {
            let at = semaphore + 8;
            let word = self.memory.read_u64(PhysAddr(at)).unwrap();
            Semaphores::of(&self.kernel, &self.memory).is_stale(word, at)
        }
    }

    #[test]
    fn the_last_reader_of_a_semaphore_that_is_not_held() {
        const AT: u64 = 0x1_2340;
        const LIST: u64 = DIRECT + AT + 24;
        let mut guest = Guest::new(WITH_LIST);
        let mut is_stale = |words: [u64; 5]| guest.write(AT, &words).is_stale(AT);
        assert!(is_stale([0, READER_GONE, 0, LIST, LIST]));
        // A reader or a writer holds it.
        assert!(!is_stale([0x100, READER_GONE, 0, LIST, LIST]));
        assert!(!is_stale([1, READER_GONE - READER, 0, LIST, LIST]));
        // A task waits for it.
        assert!(!is_stale([0, READER_GONE, 0, DIRECT + 0x7000, DIRECT + 0x7000]));
        // These are not semaphores: a pointer with a flag, and lists of other structs.
        assert!(!is_stale([0, READER_GONE, 0, 0, 0]));
        assert!(!is_stale([0, READER_GONE, 0, LIST, LIST + 0x1000]));
        assert!(!is_stale([0, READER_GONE, 0, LIST + 0x1000, LIST + 0x1000]));
        assert!(!is_stale([0, READER_GONE, LIST - 8, LIST - 8, 0]));
        assert!(!is_stale([0, READER_GONE, 0, u64::MAX - 7, u64::MAX - 7]));
    }

    #[test]
    fn without_a_list_it_must_be_known_what_it_is_a_part_of() {
        const AT: u64 = 0x1_2300;
        const DENTRY: u64 = 0x5_0000;
        const UMOUNT: u64 = AT + 128;
        let mut guest = Guest::new(WITH_FIRST);
        guest.write(UMOUNT, &[0, READER_GONE, 0, 0]);
        // Any word may look like this one.
        assert!(!guest.is_stale(UMOUNT));
        guest.write(AT + 64, &[DIRECT + DENTRY]).write(DENTRY + 40, &[DIRECT + AT]);
        assert!(guest.is_stale(UMOUNT));
        assert!(!guest.write(UMOUNT, &[0x100, READER_GONE, 0, 0]).is_stale(UMOUNT));
        assert!(!guest.write(UMOUNT, &[0, READER_GONE, 0, DIRECT + 0x7000]).is_stale(UMOUNT));
        guest.write(UMOUNT, &[0, READER_GONE, 0, 0]);
        assert!(!guest.write(DENTRY + 40, &[DIRECT + AT + 8]).is_stale(UMOUNT));
    }

    #[test]
    fn variables_are_known_by_their_names() {
        let mut guest = Guest::new(WITH_FIRST);
        for at in [0x6000, 0x6040] {
            guest.write(TEXT_PHYS + at, &[0, READER_GONE, 0, 0]);
        }
        assert!(guest.is_stale(TEXT_PHYS + 0x6000));
        assert!(!guest.is_stale(TEXT_PHYS + 0x6040));
        assert!(!guest.write(TEXT_PHYS + 0x6000, &[0x100]).is_stale(TEXT_PHYS + 0x6000));
    }

    #[test]
    fn kernels_whose_semaphores_have_no_owner() {
        let mut guest = Guest::new(&[("rwbase", 0)]);
        let list = DIRECT + 0x1_2340 + 24;
        assert!(!guest.write(0x1_2340, &[0, READER_GONE, 0, list, list]).is_stale(0x1_2340));
    }
}
