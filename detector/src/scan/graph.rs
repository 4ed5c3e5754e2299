//! Separates direct from indirect leaks, as LeakSanitizer does.
//!
//! Nothing refers to a direct leak. Only other leaks refer to an indirect one. Objects in a
//! reference cycle count as one, represented by the one that was allocated first.

use crate::count::Count;
use std::collections::HashMap;

/// A leaked block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaked {
    /// The block's number.
    pub block: u32,
    /// The block's size in bytes.
    pub bytes: u64,
}

/// The verdict on one leaked block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Whether nothing outside its own cycle refers to the block.
    pub direct: bool,
    /// The indirect leaks that are reachable from a direct leak. An indirect leak that is reachable
    /// from several direct leaks counts for the first of them. The sum over all direct leaks is
    /// therefore the number of indirect leaks.
    pub retains: Count,
}

/// Judges the leaked blocks.
///
/// `leaks` is in the order of allocation. `references` calls its argument with the number of every
/// block that a block refers to. The time is proportional to the number of references.
pub fn judge(leaks: &[Leaked], mut references: impl FnMut(u32, &mut dyn FnMut(u32))) -> Vec<Verdict> {
    let place: HashMap<u32, u32> = leaks.iter().enumerate().map(|(i, leak)| (leak.block, i as u32)).collect();
    let mut edges: Vec<Vec<u32>> = vec![Vec::new(); leaks.len()];
    for (i, leak) in leaks.iter().enumerate() {
        references(leak.block, &mut |to| {
            // A block's references to itself and repeated references do not matter.
            if let Some(&to) = place.get(&to).filter(|to| **to != i as u32 && edges[i].last() != Some(to)) {
                edges[i].push(to);
            }
        });
    }
    let circles = circles(&edges);
    let mut referred = vec![false; leaks.len()];
    for (i, to) in edges.iter().enumerate().flat_map(|(i, e)| e.iter().map(move |to| (i, *to as usize))) {
        if circles[i] != circles[to] {
            referred[circles[to] as usize] = true;
        }
    }
    let mut verdicts = vec![Verdict::default(); leaks.len()];
    let mut taken = vec![false; leaks.len()];
    // In the order of allocation, so that the first block of a cycle is met first.
    for head in 0..leaks.len() {
        if taken[head] || referred[circles[head] as usize] {
            continue;
        }
        taken[head] = true;
        let mut retains = Count::default();
        let mut todo = vec![head as u32];
        while let Some(at) = todo.pop() {
            for &to in &edges[at as usize] {
                if !std::mem::replace(&mut taken[to as usize], true) {
                    retains += Count { objects: 1, bytes: leaks[to as usize].bytes };
                    todo.push(to);
                }
            }
        }
        verdicts[head] = Verdict { direct: true, retains };
    }
    verdicts
}

/// Returns for each node the number of its strongly connected component. This is Tarjan's algorithm
/// without recursion, since chains of leaked objects may be long.
fn circles(edges: &[Vec<u32>]) -> Vec<u32> {
    const NEW: u32 = u32::MAX;
    let n = edges.len();
    let (mut order, mut low, mut circle) = (vec![NEW; n], vec![0u32; n], vec![NEW; n]);
    let (mut open, mut path): (Vec<u32>, Vec<(u32, usize)>) = (Vec::new(), Vec::new());
    let (mut visited, mut count) = (0, 0);
    for start in 0..n as u32 {
        if order[start as usize] != NEW {
            continue;
        }
        path.push((start, 0));
        while let Some((at, next)) = path.last_mut() {
            let i = *at as usize;
            if order[i] == NEW {
                (order[i], low[i]) = (visited, visited);
                visited += 1;
                open.push(*at);
            }
            if let Some(&to) = edges[i].get(*next) {
                *next += 1;
                if order[to as usize] == NEW {
                    path.push((to, 0));
                } else if circle[to as usize] == NEW {
                    low[i] = low[i].min(order[to as usize]);
                }
                continue;
            }
            if low[i] == order[i] {
                while let Some(member) = open.pop() {
                    circle[member as usize] = count;
                    if member as usize == i {
                        break;
                    }
                }
                count += 1;
            }
            path.pop();
            if let Some((parent, _)) = path.last() {
                low[*parent as usize] = low[*parent as usize].min(low[i]);
            }
        }
    }
    circle
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Judges blocks 100, 101, ... of 10 bytes. `references` are given as indexes.
    fn judged(references: &[&[u32]]) -> Vec<Verdict> {
        let leaks: Vec<Leaked> = (0..references.len() as u32).map(|i| Leaked { block: 100 + i, bytes: 10 }).collect();
        judge(&leaks, |block, each| references[block as usize - 100].iter().for_each(|to| each(100 + to)))
    }

    const INDIRECT: Verdict = Verdict { direct: false, retains: Count { objects: 0, bytes: 0 } };

    /// A direct leak that holds `objects` blocks of 10 bytes.
    const fn direct(objects: u64) -> Verdict {
        Verdict { direct: true, retains: Count { objects, bytes: 10 * objects } }
    }

    #[test]
    fn chains_and_trees_have_one_head() {
        assert_eq!(judged(&[&[1], &[2], &[]]), [direct(2), INDIRECT, INDIRECT]);
        // Allocated from the leaves up. References to blocks that are not leaked are ignored.
        assert_eq!(judged(&[&[], &[], &[0, 1, 0, 77], &[3]]), [INDIRECT, INDIRECT, direct(2), direct(0)]);
    }

    #[test]
    fn circles_have_one_head() {
        assert_eq!(judged(&[&[1], &[2], &[0]]), [direct(2), INDIRECT, INDIRECT]);
        // An earlier block refers to a cycle, and the cycle to another block.
        assert_eq!(judged(&[&[1], &[0, 3], &[0], &[]]), [INDIRECT, INDIRECT, direct(3), INDIRECT]);
        // Two cycles, of which one refers to the other.
        assert_eq!(judged(&[&[1], &[0, 2], &[3], &[2]]), [direct(3), INDIRECT, INDIRECT, INDIRECT]);
    }

    #[test]
    fn what_two_refer_to_counts_for_the_first() {
        assert_eq!(judged(&[&[2], &[2], &[3], &[]]), [direct(2), direct(0), INDIRECT, INDIRECT]);
    }

    #[test]
    fn long_chains_end() {
        let n = if cfg!(miri) { 500u32 } else { 200_000 };
        let leaks: Vec<Leaked> = (0..n).map(|block| Leaked { block, bytes: 8 }).collect();
        let verdicts = judge(&leaks, |block, each| each((block + 1) % n));
        let retains = Count { objects: u64::from(n) - 1, bytes: (u64::from(n) - 1) * 8 };
        assert_eq!(verdicts[0], Verdict { direct: true, retains });
        assert!(verdicts[1..].iter().all(|v| !v.direct));
    }
}
