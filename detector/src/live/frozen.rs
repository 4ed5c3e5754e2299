//! The live objects at one moment, with task names and clock readings.

use crate::live::clock::{self, Clock, Reading};
use crate::live::comms::{Comm, Comms};
use crate::live::object::{Kind, Object};
use crate::live::objects::{LiveMap, Sizes};
use rayon::slice::ParallelSliceMut;

/// The size of one object that lies in no slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Virtual address, or `__percpu` pointer.
    pub addr: u64,
    /// The allocator that it comes from. Pages may start at the address of another object.
    pub kind: Kind,
    /// Bytes as requested.
    pub bytes: u64,
}

/// All live objects, ascending by address. Objects with equal addresses have no order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    list: Vec<(u64, Object)>,
    sizes: Sizes,
    comms: Vec<Comm>,
    readings: Vec<Reading>,
}

impl Objects {
    /// Copies several maps. `now` is the reading of both clocks.
    pub fn of(maps: &[&LiveMap], comms: &Comms, clock: &Clock, now: Reading) -> Objects {
        let mut list = Vec::with_capacity(maps.iter().map(|m| m.len()).sum());
        let mut sizes = Sizes::default();
        maps.iter().for_each(|map| map.copy_to(&mut list, &mut sizes));
        // Sorts in parallel only inside a pool of the caller. Threads of rayon's global pool would
        // get signals.
        if rayon::current_thread_index().is_some() {
            list.par_sort_unstable_by_key(|(addr, _)| *addr);
        } else {
            list.sort_unstable_by_key(|(addr, _)| *addr);
        }
        Objects { list, sizes, comms: comms.all(), readings: clock.until(now) }
    }

    /// Puts together what the accessors below return. `list` and `readings` must be ascending.
    pub fn from_parts(
        list: Vec<(u64, Object)>,
        sizes: impl IntoIterator<Item = Size>,
        comms: Vec<Comm>,
        readings: Vec<Reading>,
    ) -> Objects {
        Objects { list, sizes: sizes.into_iter().map(|s| ((s.addr, s.kind), s.bytes)).collect(), comms, readings }
    }

    /// Sizes of objects that are not in slabs, ascending by address and kind.
    pub fn sizes(&self) -> Vec<Size> {
        let mut sizes: Vec<_> = self.sizes.iter().map(|(&(addr, kind), &bytes)| Size { addr, kind, bytes }).collect();
        sizes.sort_unstable_by_key(|size| (size.addr, size.kind as u8));
        sizes
    }

    /// Task names, indexed by number minus one.
    pub fn comms(&self) -> &[Comm] {
        &self.comms
    }

    /// Readings of both clocks, ascending.
    pub fn readings(&self) -> &[Reading] {
        &self.readings
    }

    /// The objects, each with its virtual address or `__percpu` pointer.
    #[inline]
    pub fn list(&self) -> &[(u64, Object)] {
        &self.list
    }

    /// Marks objects with a sequence number below `sequence` as reported.
    pub fn set_reported_before(&mut self, sequence: u64) {
        self.list.iter_mut().filter(|(_, o)| o.sequence() < sequence).for_each(|(_, o)| o.set_reported());
    }

    /// The size in bytes as requested. It is 0 for slab objects, whose slab defines the size.
    pub fn size(&self, addr: u64, object: &Object) -> u64 {
        match object.kind() {
            Kind::Slab => 0,
            kind => self.sizes.get(&(addr, kind)).copied().unwrap_or(0),
        }
    }

    /// The comm of the task that allocated an object.
    pub fn comm(&self, object: &Object) -> Comm {
        let index = (object.comm().0 as usize).checked_sub(1);
        index.and_then(|i| self.comms.get(i)).copied().unwrap_or_default()
    }

    /// The guest's jiffies at allocation: the latest value before now with the stored low half.
    pub fn jiffies(&self, object: &Object) -> u64 {
        self.whole(object.jiffies())
    }

    /// The latest jiffies before now with this low half.
    fn whole(&self, jiffies: u32) -> u64 {
        let now = self.readings.last().map_or(0, |r| r.jiffies);
        let age = (now as u32).wrapping_sub(jiffies);
        now.wrapping_sub(age.into())
    }

    /// The time in milliseconds since the start of tracking when the low half of the guest's jiffies
    /// was `jiffies`.
    pub fn millis_at(&self, jiffies: u32) -> u64 {
        clock::millis_at(&self.readings, self.whole(jiffies))
    }

    /// The time of allocation in milliseconds since the start of tracking.
    pub fn millis(&self, object: &Object) -> u64 {
        clock::millis_at(&self.readings, self.jiffies(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::object::Allocation;
    use crate::live::stacks::StackId;

    #[test]
    fn what_was_put_in() {
        let (map, comms, clock) = (LiveMap::default(), Comms::default(), Clock::default());
        let comm = *b"insmod\0\0\0\0\0\0\0\0\0\0";
        let object = |kind, jiffies, sequence| {
            let (stack, comm) = (StackId(3), comms.intern(comm));
            Object::from(Allocation { kind, stack, sequence, jiffies, pid: 5, tgid: 4, cpu: 1, comm })
        };
        // Jiffies start 5 minutes before their low half overflows (`INITIAL_JIFFIES`,
        // include/linux/jiffies.h).
        clock.tick(0xffff_fff0, || 0);
        map.insert(0x3000, object(Kind::Vmalloc, 0xffff_fff8, 1), 12288, 0);
        map.insert(0x1000, object(Kind::Slab, 0x1_0000_0008, 2), 0, 0);
        let objects = Objects::of(&[&map], &comms, &clock, Reading { jiffies: 0x1_0000_0010, millis: 320 });
        let [(first, slab), (second, area)] = objects.list() else { panic!("two objects") };
        assert_eq!((*first, *second), (0x1000, 0x3000));
        assert_eq!((objects.size(*first, slab), objects.size(*second, area)), (0, 12288));
        assert_eq!((objects.jiffies(area), objects.jiffies(slab)), (0xffff_fff8, 0x1_0000_0008));
        assert_eq!((objects.millis(area), objects.millis(slab)), (80, 240));
        assert_eq!(objects.comm(slab), comm);
        assert_eq!(objects.comm(&Object::unseen(Kind::Slab)), [0; 16]);
        let (comms, readings) = (objects.comms().to_vec(), objects.readings().to_vec());
        let again = Objects::from_parts(objects.list().to_vec(), objects.sizes(), comms, readings);
        assert_eq!(again, objects);
        map.remove(0x3000);
        assert_eq!(
            Objects::of(&[&map], &Comms::default(), &clock, Reading { jiffies: 0x1_0000_0010, millis: 320 }).sizes(),
            []
        );
    }
}
