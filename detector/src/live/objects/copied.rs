//! A copy of a live map's objects. It is put back when the guest's memory returns to the moment of
//! the copy.

use super::LiveMap;
use crate::live::object::Object;

/// All objects of a [`LiveMap`] at one moment.
#[derive(Debug, Default)]
pub struct Copied {
    objects: Vec<(u64, Object)>,
    sizes: Vec<(u64, u64)>,
}

impl Copied {
    /// Bytes that a copy of `map` takes.
    pub fn bytes(map: &LiveMap) -> u64 {
        let bytes = map.map.len() * size_of::<(u64, Object)>() + map.sizes.len() * size_of::<(u64, u64)>();
        bytes as u64
    }

    /// Copies the objects of `map`, including those passed to kfree_rcu(). The map must not change
    /// meanwhile.
    pub fn of(map: &LiveMap) -> Copied {
        Copied {
            objects: map.map.iter().map(|e| (*e.key(), *e.value())).collect(),
            sizes: map.sizes.iter().map(|e| (*e.key(), *e.value())).collect(),
        }
    }

    /// Calls `each` for every object.
    pub fn for_each(&self, each: impl FnMut(&Object)) {
        self.objects.iter().map(|(_, object)| object).for_each(each);
    }

    /// Marks the objects as reported that a report has listed since the copy was made.
    pub fn take_reported(&mut self, map: &LiveMap) {
        for (addr, object) in &mut self.objects {
            let is_same = |now: Object| now.sequence() == object.sequence() && now.is_reported();
            if map.get(*addr).is_some_and(is_same) {
                object.set_reported();
            }
        }
    }

    /// Replaces all objects of `map` by these. The counters stay.
    pub fn put_back(self, map: &LiveMap) {
        map.clear();
        self.objects.into_iter().for_each(|(addr, object)| _ = map.map.insert(addr, object));
        self.sizes.into_iter().for_each(|(addr, size)| _ = map.sizes.insert(addr, size));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comms::CommId;
    use crate::live::object::{Allocation, Kind};
    use crate::objects::Sizes;
    use crate::stacks::StackId;

    fn enter(map: &LiveMap, addr: u64, kind: Kind, sequence: u64) {
        let stack = StackId::NONE;
        let comm = CommId::default();
        let object = Allocation { kind, stack, sequence, jiffies: 0, pid: 1, tgid: 1, cpu: 0, comm };
        map.insert(addr, object.into(), 100, sequence);
    }

    fn contents(map: &LiveMap) -> Vec<(u64, u64, bool, Option<u64>)> {
        let (mut list, mut sizes) = (Vec::new(), Sizes::new());
        map.copy_to(&mut list, &mut sizes);
        list.sort_by_key(|(addr, _)| *addr);
        let size = |addr, object: Object| sizes.get(&(addr, object.kind())).copied();
        list.into_iter().map(|(addr, o)| (addr, o.sequence(), o.is_reported(), size(addr, o))).collect()
    }

    #[test]
    fn what_was_live_is_live_again() {
        let map = LiveMap::default();
        enter(&map, 0x1000, Kind::Slab, 1);
        enter(&map, 0x2000, Kind::Large, 2);
        enter(&map, 0x3000, Kind::Slab, 3);
        enter(&map, 0x4000, Kind::Slab, 4);
        map.retire(0x4000);
        let mut copy = Copied::of(&map);
        assert_eq!(Copied::bytes(&map), 4 * 32 + 16);
        // Freed objects come back, and new ones disappear. A new object at the address of an old
        // one is another object.
        map.remove(0x1000);
        map.remove(0x2000);
        map.remove(0x3000);
        enter(&map, 0x1000, Kind::Slab, 5);
        enter(&map, 0x3000, Kind::Vmalloc, 6);
        enter(&map, 0x5000, Kind::Vmalloc, 7);
        [0x1000, 0x4000, 0x5000].into_iter().for_each(|addr| map.set_reported(addr));
        let counters = map.counters();
        copy.take_reported(&map);
        copy.put_back(&map);
        let right = [(0x1000, 1, false, None), (0x2000, 2, false, Some(100)), (0x3000, 3, false, None)];
        assert_eq!(contents(&map)[..3], right);
        assert_eq!(contents(&map)[3..], [(0x4000, 4, true, None)]);
        assert!(map.get(0x4000).is_some_and(|o| o.is_rcu_pending()));
        assert_eq!(map.counters(), counters);
    }
}
