//! The live objects of one moment, and what is known of them.

use crate::clock::{self, Clock, Reading};
use crate::comms::{Comm, Comms};
use crate::object::{Kind, Object};
use crate::objects::{LiveMap, Sizes};
use rayon::slice::ParallelSliceMut;

/// All objects, ascending by address; of those with the same address in any order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    list: Vec<(u64, Object)>,
    sizes: Sizes,
    comms: Vec<Comm>,
    readings: Vec<Reading>,
}

impl Objects {
    /// The objects of several maps; `now` are the guest's jiffies and milliseconds since the start of tracking.
    pub fn of(maps: &[&LiveMap], comms: &Comms, clock: &Clock, now: Reading) -> Objects {
        let mut list = Vec::with_capacity(maps.iter().map(|m| m.len()).sum());
        let mut sizes = Sizes::default();
        maps.iter().for_each(|map| map.copy_to(&mut list, &mut sizes));
        // Only in a pool that was made for it: the one that rayon would make has threads that get signals.
        if rayon::current_thread_index().is_some() {
            list.par_sort_unstable_by_key(|(addr, _)| *addr);
        } else {
            list.sort_unstable_by_key(|(addr, _)| *addr);
        }
        Objects { list, sizes, comms: comms.all(), readings: clock.until(now) }
    }

    /// Of what the methods below give, with `list` and the readings ascending.
    pub fn from_parts(
        list: Vec<(u64, Object)>,
        sizes: impl IntoIterator<Item = ((u64, Kind), u64)>,
        comms: Vec<Comm>,
        readings: Vec<Reading>,
    ) -> Objects {
        Objects { list, sizes: sizes.into_iter().collect(), comms, readings }
    }

    /// Sizes in bytes of what is in no slab, by address and kind, ascending.
    pub fn sizes(&self) -> Vec<((u64, Kind), u64)> {
        let mut sizes: Vec<_> = self.sizes.iter().map(|(k, v)| (*k, *v)).collect();
        sizes.sort_unstable_by_key(|((addr, kind), _)| (*addr, *kind as u8));
        sizes
    }

    /// Names of tasks by number less one.
    pub fn comms(&self) -> &[Comm] {
        &self.comms
    }

    /// Readings of the guest's clock and the host's.
    pub fn readings(&self) -> &[Reading] {
        &self.readings
    }

    /// The objects, each with its virtual address or `__percpu` pointer.
    #[inline]
    pub fn list(&self) -> &[(u64, Object)] {
        &self.list
    }

    /// Counts those with a lower sequence number as reported.
    pub fn set_reported_before(&mut self, sequence: u64) {
        self.list.iter_mut().filter(|(_, o)| o.sequence() < sequence).for_each(|(_, o)| o.set_reported());
    }

    /// Bytes as requested; 0 for slab objects, whose slabs know.
    pub fn size(&self, addr: u64, object: &Object) -> u64 {
        match object.kind() {
            Kind::Slab => 0,
            kind => self.sizes.get(&(addr, kind)).copied().unwrap_or(0),
        }
    }

    /// The name of the task that allocated an object.
    pub fn comm(&self, object: &Object) -> Comm {
        let index = (object.comm().0 as usize).checked_sub(1);
        index.and_then(|i| self.comms.get(i)).copied().unwrap_or_default()
    }

    /// The guest's jiffies at allocation: the latest that have this low half.
    pub fn jiffies(&self, object: &Object) -> u64 {
        let now = self.readings.last().map_or(0, |r| r.0);
        let age = (now as u32).wrapping_sub(object.jiffies());
        now.wrapping_sub(age.into())
    }

    /// Milliseconds since the start of tracking at allocation.
    pub fn millis(&self, object: &Object) -> u64 {
        clock::millis_at(&self.readings, self.jiffies(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Allocation;
    use crate::stacks::StackId;

    #[test]
    fn what_was_put_in() {
        let (map, comms, clock) = (LiveMap::default(), Comms::default(), Clock::default());
        let comm = *b"insmod\0\0\0\0\0\0\0\0\0\0";
        let object = |kind, jiffies, sequence| {
            let (stack, comm) = (StackId(3), comms.intern(comm));
            Object::from(Allocation { kind, stack, sequence, jiffies, pid: 5, tgid: 4, cpu: 1, comm })
        };
        // Jiffies start 5 minutes before their low half overflows (INITIAL_JIFFIES, include/linux/jiffies.h).
        clock.tick(0xffff_fff0, || 0);
        map.insert(0x3000, object(Kind::Vmalloc, 0xffff_fff8, 1), 12288, 0);
        map.insert(0x1000, object(Kind::Slab, 0x1_0000_0008, 2), 0, 0);
        let objects = Objects::of(&[&map], &comms, &clock, (0x1_0000_0010, 320));
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
        assert_eq!(Objects::of(&[&map], &Comms::default(), &clock, (0x1_0000_0010, 320)).sizes(), []);
    }
}
