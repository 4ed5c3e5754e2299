//! Samples of every ten seconds, and the trend of memory.

use crate::memory::Memory;
use serde_json::Value;
use std::fmt::Write as _;
use std::time::Duration;

/// Figures of `status` for the table.
pub const FIGURES: [&str; 8] = [
    "allocations",
    "frees",
    "live_objects",
    "unmatched_returns",
    "unwatched_sites",
    "unknown_frees",
    "missed_frees",
    "hooks_hit",
];

/// One sample of QEMU and libleak.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Time since the start.
    pub at: Duration,
    /// The number of the boot, from 1. 0 before the first boot is up.
    pub boot: u32,
    /// Time since this boot was up.
    pub since_boot: Duration,
    /// QEMU's memory.
    pub memory: Memory,
    /// libleak's answer. `Null` if there was none.
    pub status: Value,
}

/// The slope of a line through memory samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slope {
    /// MiB per hour, or per boot.
    pub mib: f64,
    /// Twice the standard error.
    pub error: f64,
}

impl Slope {
    /// Whether memory grows by more than the noise and by more than `mib` MiB.
    pub fn exceeds(&self, mib: f64) -> bool {
        self.mib > self.error && self.mib > mib
    }

    /// Fits by least squares. `None` if there are too few points.
    fn of(points: &[(f64, f64)]) -> Option<Slope> {
        let n = points.len() as f64;
        if points.len() < 4 {
            return None;
        }
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
        let (x, y) = (mean(|p| p.0), mean(|p| p.1));
        let square: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
        let mib = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum::<f64>() / square;
        let rest: f64 = points.iter().map(|p| (p.1 - y - mib * (p.0 - x)).powi(2)).sum();
        Some(Slope { mib, error: 2.0 * (rest / (n - 2.0) / square).sqrt() })
    }
}

impl Sample {
    /// The header of the file.
    pub fn head() -> String {
        format!(
            "seconds\tboot\ttracking\trss_kib\tguest_kib\tcode_kib\trest_kib\town_kib\tscans\tpauses\t{}\n",
            FIGURES.join("\t")
        )
    }

    /// The sample's line of the file.
    pub fn line(&self) -> String {
        let m = &self.memory;
        let number = |v: &Value| v.as_u64().map_or_else(String::new, |n| n.to_string());
        let mut line = format!(
            "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
            self.at.as_secs(),
            self.boot,
            u8::from(self.status["tracking"] == true),
            m.all,
            m.guest,
            m.code,
            m.rest(),
            self.status["memory_bytes"].as_u64().unwrap_or_default() >> 10,
            number(&self.status["scans"]),
            number(&self.status["pauses"]["count"])
        );
        for name in FIGURES {
            let _ = write!(line, "\t{}", number(&self.status["figures"][name]));
        }
        line + "\n"
    }
}

/// Samples taken at least this long after their boot.
pub fn settled(samples: &[Sample], after: Duration) -> Vec<&Sample> {
    samples.iter().filter(|s| s.boot > 0 && s.since_boot >= after).collect()
}

/// The median of `of`, in MiB, over the samples nearest to a moment.
pub fn around(samples: &[&Sample], at: Duration, of: impl Fn(&Memory) -> u64) -> f64 {
    let mut near: Vec<&&Sample> = samples.iter().collect();
    near.sort_by_key(|s| s.at.abs_diff(at));
    near.truncate(5);
    median(near.iter().map(|s| of(&s.memory)).collect())
}

fn median(mut kib: Vec<u64>) -> f64 {
    kib.sort_unstable();
    kib.get(kib.len() / 2).map_or(f64::NAN, |&k| k as f64 / 1024.0)
}

/// The growth of memory that is neither guest memory nor code, in MiB per hour.
pub fn by_hours(samples: &[&Sample]) -> Option<Slope> {
    let point = |s: &&Sample| (s.at.as_secs_f64() / 3600.0, s.memory.rest() as f64 / 1024.0);
    Slope::of(&samples.iter().map(point).collect::<Vec<_>>())
}

/// The same per boot, from the settled memory of each boot. The first boot is left out, since it
/// includes what QEMU needs once.
pub fn by_boots(settled: &[&Sample]) -> Option<Slope> {
    let last = settled.iter().map(|s| s.boot).max().unwrap_or(0);
    let first = |boot| settled.iter().filter(move |s| s.boot == boot).take(6);
    let point = |boot| (f64::from(boot), median(first(boot).map(|s| s.memory.rest()).collect()));
    Slope::of(&(2..=last).map(point).filter(|p| p.1.is_finite()).collect::<Vec<_>>())
}

/// A table of boots with the memory of each at its start and its end.
pub fn boots(samples: &[Sample], after: Duration) -> String {
    let mut text = String::from("boot  minutes  rest at first  at its end  at most (MiB)  live objects  allocations\n");
    let last = samples.iter().map(|s| s.boot).max().unwrap_or(0);
    for boot in 1..=last {
        let own: Vec<&Sample> = samples.iter().filter(|s| s.boot == boot).collect();
        let settled: Vec<&&Sample> = own.iter().filter(|s| s.since_boot >= after).collect();
        let rest = |s: &[&&Sample]| median(s.iter().map(|s| s.memory.rest()).collect());
        let few = settled.len().min(3);
        let figure =
            |name: &str| own.iter().filter_map(|s| s.status["figures"][name].as_u64()).next_back().unwrap_or(0);
        let _ = writeln!(
            text,
            "{boot:>4} {:>8.1} {:>14.1} {:>11.1} {:>14.1} {:>13} {:>12}",
            own.last().map_or(0.0, |s| s.since_boot.as_secs_f64() / 60.0),
            rest(&settled[..few]),
            rest(&settled[settled.len() - few..]),
            own.iter().map(|s| s.memory.rest()).max().unwrap_or(0) as f64 / 1024.0,
            figure("live_objects"),
            figure("allocations")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rest: impl Fn(u64) -> u64) -> Vec<Sample> {
        let sample = |i| Sample {
            at: Duration::from_secs(10 * i),
            boot: 1,
            since_boot: Duration::from_secs(10 * i),
            memory: Memory { all: 5000 + rest(i), guest: 4000, code: 1000 },
            status: Value::Null,
        };
        (0..100).map(sample).collect()
    }

    #[test]
    fn growth_is_told_from_noise() {
        let noise = samples(|i| 50_000 + i * 7919 % 1000);
        let flat = by_hours(&settled(&noise, Duration::ZERO)).unwrap();
        assert!(!flat.exceeds(1.0), "{flat:?}");
        // 30 KiB per ten seconds are about 10 MiB per hour.
        let leak = samples(|i| 50_000 + i * 7919 % 1000 + 30 * i);
        let grown = by_hours(&settled(&leak, Duration::ZERO)).unwrap();
        assert!(grown.exceeds(5.0) && (grown.mib - 10.5).abs() < 1.0, "{grown:?}");
        let late = settled(&leak, Duration::from_secs(900));
        assert_eq!(late.len(), 10);
        assert!((around(&late, Duration::ZERO, Memory::rest) - 51.9).abs() < 1.0);
        assert_eq!(by_hours(&late[..3]), None);
    }

    #[test]
    fn what_each_boot_leaves_behind_is_seen() {
        let mut all = samples(|i| 50_000 + i % 10 * 2000);
        all.iter_mut().enumerate().for_each(|(i, s)| s.boot = 1 + i as u32 / 10);
        assert!(!by_boots(&settled(&all, Duration::ZERO)).unwrap().exceeds(0.1));
        all.iter_mut().for_each(|s| s.memory.all += u64::from(s.boot) * 2048);
        let grown = by_boots(&settled(&all, Duration::ZERO)).unwrap();
        assert!(grown.exceeds(1.0) && (grown.mib - 2.0).abs() < 0.1, "{grown:?}");
    }
}
