//! Live objects counted by allocation site, and the growth of sites between two counts. Growth
//! shows leaks that are still referenced, such as a list to which entries are only added.

use crate::CheckError;
use crate::blocks;
use crate::guest_state::GuestState;
use crate::names::{Load, Names};
use detector::control::{By, Count, Place};
use detector::objects::Object;
use detector::report::Frame;
use detector::stacks::StackId;
use guest_symbols::memory::StoppedMemory;
use guest_symbols::pages::Pages;
use std::cmp::Reverse;
use std::collections::HashMap;

/// Identifies an allocation site: the stack, and the last module loaded before the allocation. An
/// address may belong to different modules at different times.
type Key = (StackId, u64);

/// Counts of the live objects at one time, reachable or not.
#[derive(Default)]
pub struct Sites {
    /// The count of each site, with one of its objects.
    counts: HashMap<Key, (Count, Object)>,
    total: Count,
    at_ms: u64,
    /// The modules at that time. Some of them may be forgotten later.
    modules: Vec<Load>,
}

impl Sites {
    /// Counts the live objects.
    ///
    /// # Errors
    /// [`CheckError::Pages`].
    pub fn of(moment: &GuestState<'_, impl StoppedMemory>) -> Result<Sites, CheckError> {
        let pages = Pages::read(moment.kernel, moment.memory)?;
        let blocks = blocks::lay_out(moment.kernel, moment.memory, &pages, moment.allocations(), moment.registers);
        let names = moment.names();
        let mut sites = Sites { at_ms: moment.millis, modules: moment.modules.to_vec(), ..Sites::default() };
        for b in &blocks.blocks {
            let object = blocks.object(b);
            sites.add((object.stack(), names.loaded(object.sequence())), b.size, *object);
        }
        Ok(sites)
    }

    fn add(&mut self, key: Key, bytes: u64, object: Object) {
        let (count, _) = self.counts.entry(key).or_insert((Count::default(), object));
        for count in [count, &mut self.total] {
            *count = Count { objects: count.objects + 1, bytes: count.bytes + bytes };
        }
    }

    /// The count of all objects.
    pub fn total(&self) -> Count {
        self.total
    }

    /// The time of the count, in milliseconds since the start of tracking.
    pub fn at_ms(&self) -> u64 {
        self.at_ms
    }

    /// Sites with the most live bytes first.
    pub fn top(&self, names: Names<'_>, by: By) -> Vec<Place> {
        let counts = self.counts.values().map(|(now, object)| (names, Count::default(), *now, *object));
        let mut places = merge(by, counts);
        places.sort_by_key(|p| Reverse((p.now.bytes, p.now.objects)));
        places
    }

    /// Sites that have grown, with the largest growth in bytes first.
    pub fn grown_since(&self, then: &Sites, names: Names<'_>, by: By) -> Vec<Place> {
        let of = |sites: &Sites, key: &Key| sites.counts.get(key).map_or(Count::default(), |(count, _)| *count);
        let now = self.counts.iter().map(|(key, (now, object))| (names, of(then, key), *now, *object));
        let gone = then.counts.iter().filter(|(key, _)| !self.counts.contains_key(key));
        let before = Names { modules: &then.modules, ..names };
        let gone = gone.map(|(_, (then, object))| (before, *then, Count::default(), *object));
        // Unchanged sites need no name, unless they are part of a larger place.
        let changed = now.chain(gone).filter(|(_, then, now, _)| then != now || by == By::Site);
        let mut places = merge(by, changed);
        places.retain(|p| p.now.bytes > p.then.bytes || p.now.objects > p.then.objects);
        places.sort_by_key(|p| Reverse((p.growth().bytes, p.growth().objects)));
        places
    }
}

/// Merges sites with equal names, wherever their module was loaded.
fn merge<'a>(by: By, counts: impl Iterator<Item = (Names<'a>, Count, Count, Object)>) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    let mut by_name: HashMap<Vec<String>, usize> = HashMap::new();
    for (names, then, now, object) in counts {
        let frames = match by {
            By::Stack => names.frames(&object),
            By::Site => match &names.site(&object)[..] {
                [] => vec![Frame::default()],
                site => site.to_vec(),
            },
        };
        let number = *by_name.entry(frames.iter().map(Frame::to_string).collect()).or_insert_with(|| {
            places.push(Place { stack: frames, then: Count::default(), now: Count::default() });
            places.len() - 1
        });
        let place = &mut places[number];
        for (sum, count) in [(&mut place.then, then), (&mut place.now, now)] {
            *sum = Count { objects: sum.objects + count.objects, bytes: sum.bytes + count.bytes };
        }
    }
    places
}
