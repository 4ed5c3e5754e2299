//! Who of the leaked objects is to blame: direct leaks, to which nothing refers, and indirect ones, to which only other
//! leaks do, as LeakSanitizer tells them apart.
//!
//! Objects that refer to each other in a circle are as one: the one allocated first stands for them.

use std::collections::HashMap;

/// What became of one leaked block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Nothing refers to it, but for its own circle.
    pub direct: bool,
    /// For a direct leak what hangs from it: blocks, and their bytes. What hangs from several direct leaks counts for the
    /// first of them, so that the sum over all is the number of indirect leaks.
    pub retains: (u64, u64),
}

/// Tells leaks apart. `leaks` are the numbers of the leaked blocks in the order of their allocation, with their bytes, and
/// `references` calls its argument with the number of every block that one refers to.
///
/// Takes time in proportion to the number of references.
pub fn judge(leaks: &[(u32, u64)], mut references: impl FnMut(u32, &mut dyn FnMut(u32))) -> Vec<Verdict> {
    let place: HashMap<u32, u32> = leaks.iter().enumerate().map(|(i, (block, _))| (*block, i as u32)).collect();
    let mut edges: Vec<Vec<u32>> = vec![Vec::new(); leaks.len()];
    for (i, (block, _)) in leaks.iter().enumerate() {
        references(*block, &mut |to| {
            // A reference to itself says nothing, and one of several to the same is enough.
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
    // In the order of allocation: the first of a circle is met first.
    for head in 0..leaks.len() {
        if taken[head] || referred[circles[head] as usize] {
            continue;
        }
        taken[head] = true;
        let mut retains = (0, 0);
        let mut todo = vec![head as u32];
        while let Some(at) = todo.pop() {
            for &to in &edges[at as usize] {
                if !std::mem::replace(&mut taken[to as usize], true) {
                    retains = (retains.0 + 1, retains.1 + leaks[to as usize].1);
                    todo.push(to);
                }
            }
        }
        verdicts[head] = Verdict { direct: true, retains };
    }
    verdicts
}

/// For each node the number of its strongly connected component, by Tarjan's algorithm without recursion: chains of
/// leaked objects may be long.
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

    /// Verdicts for blocks 100, 101, ... of 10 bytes with these references, by their places.
    fn judged(references: &[&[u32]]) -> Vec<(bool, u64, u64)> {
        let leaks: Vec<(u32, u64)> = (0..references.len() as u32).map(|i| (100 + i, 10)).collect();
        let verdicts =
            judge(&leaks, |block, each| references[block as usize - 100].iter().for_each(|to| each(100 + to)));
        verdicts.iter().map(|v| (v.direct, v.retains.0, v.retains.1)).collect()
    }

    const INDIRECT: (bool, u64, u64) = (false, 0, 0);

    #[test]
    fn chains_and_trees_have_one_head() {
        assert_eq!(judged(&[&[1], &[2], &[]]), [(true, 2, 20), INDIRECT, INDIRECT]);
        // Allocated from the leaves up; blocks that are no leaks are no matter.
        assert_eq!(judged(&[&[], &[], &[0, 1, 0, 77], &[3]]), [INDIRECT, INDIRECT, (true, 2, 20), (true, 0, 0)]);
    }

    #[test]
    fn circles_have_one_head() {
        assert_eq!(judged(&[&[1], &[2], &[0]]), [(true, 2, 20), INDIRECT, INDIRECT]);
        // A circle with a tail that refers to it, and one that hangs from it.
        assert_eq!(judged(&[&[1], &[0, 3], &[0], &[]]), [INDIRECT, INDIRECT, (true, 3, 30), INDIRECT]);
        // Two circles, one of which refers to the other.
        assert_eq!(judged(&[&[1], &[0, 2], &[3], &[2]]), [(true, 3, 30), INDIRECT, INDIRECT, INDIRECT]);
    }

    #[test]
    fn what_two_refer_to_counts_for_the_first() {
        assert_eq!(judged(&[&[2], &[2], &[3], &[]]), [(true, 2, 20), (true, 0, 0), INDIRECT, INDIRECT]);
    }

    #[test]
    fn long_chains_end() {
        let n = if cfg!(miri) { 500u32 } else { 200_000 };
        let leaks: Vec<(u32, u64)> = (0..n).map(|i| (i, 8)).collect();
        let verdicts = judge(&leaks, |block, each| each((block + 1) % n));
        assert_eq!(verdicts[0], Verdict { direct: true, retains: (u64::from(n) - 1, (u64::from(n) - 1) * 8) });
        assert!(verdicts[1..].iter().all(|v| !v.direct));
    }
}
