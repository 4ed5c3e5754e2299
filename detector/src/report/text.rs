//! Reports in kmemleak's text format, as `print_unreferenced()` prints it (mm/kmemleak.c, Linux
//! 6.12).
//!
//! Lines that kmemleak does not print follow the backtrace, indented by two. Parsers of kmemleak's
//! text read lines indented by four as frames. syzkaller reads a line as a frame if it starts with
//! a name and `+` or `.`.

use super::model::{Ages, Frame, Group, How, Leak, Loss, Report};
use crate::count::Count;
use std::cmp::Reverse;
use std::fmt::{self, Write};

/// Most bytes of a hex dump: `HEX_MAX_LINES` lines of `HEX_ROW_SIZE` (mm/kmemleak.c).
const DUMP: usize = 32;
/// Most frames that are written of the place where an object was lost.
const LOST_FRAMES: usize = 8;

/// The headline of a leak for parsers of kernel consoles. syzkaller's own programs print it before
/// each object of kmemleak.
pub const CONSOLE: &str = "BUG: memory leak\n";

/// Writes every object as kmemleak does, with `headline` before each, and then the closing lines.
pub fn each(report: &Report, headline: &str) -> String {
    let mut text = String::new();
    let mut all: Vec<(&Leak, &[Frame])> =
        report.groups.iter().flat_map(|g| g.leaks.iter().map(|l| (l, &g.frames[..]))).collect();
    all.sort_by_key(|(leak, _)| Reverse(leak.age));
    for (leak, frames) in all {
        text += headline;
        // Writing to a `String` cannot fail.
        let _ = object(&mut text, leak, frames);
    }
    text + &report.closing
}

/// Writes the oldest object of every group, followed by facts about the object and the group.
/// `headline` stands before each object. The closing lines come last.
pub fn groups(report: &Report, headline: &str) -> String {
    let mut text = String::new();
    for group in &report.groups {
        if let Some(first) = group.leaks.first() {
            text += headline;
            let _ = object(&mut text, first, &group.frames).and_then(|()| about(&mut text, group, first));
        }
    }
    text + &report.closing
}

fn object(f: &mut impl Write, leak: &Leak, frames: &[Frame]) -> fmt::Result {
    writeln!(f, "unreferenced object {:#018x} (size {}):", leak.addr, leak.size)?;
    writeln!(f, "  comm \"{}\", pid {}, jiffies {}", leak.comm, leak.pid, leak.jiffies)?;
    let len = leak.head.len().min(DUMP).min(leak.size as usize);
    match leak.shown_cpu {
        Some(cpu) => writeln!(f, "  hex dump (first {len} bytes on cpu {cpu}):")?,
        None => writeln!(f, "  hex dump (first {len} bytes):")?,
    }
    for row in leak.head[..len].chunks(16) {
        f.write_str("    ")?;
        row.iter().try_for_each(|b| write!(f, "{b:02x} "))?;
        let ascii: String = row.iter().map(|&b| if (0x20..0x7f).contains(&b) { b as char } else { '.' }).collect();
        writeln!(f, "{:1$} {ascii}", "", 3 * (16 - row.len()))?;
    }
    writeln!(f, "  backtrace (crc {:x}):", leak.crc)?;
    frames.iter().try_for_each(|frame| frame_lines(f, frame))
}

/// Writes a frame, after one line for each function inlined there.
fn frame_lines(f: &mut impl Write, frame: &Frame) -> fmt::Result {
    let (place, inlined) = frame.places.split_last().unzip();
    for inlined in inlined.into_iter().flatten() {
        writeln!(f, "    {} {inlined} [inline]", inlined.function.as_deref().unwrap_or("?"))?;
    }
    f.write_str("    ")?;
    frame.write(f, place)?;
    f.write_char('\n')
}

/// Writes facts about a group and its first object.
fn about(f: &mut impl Write, group: &Group, first: &Leak) -> fmt::Result {
    let objects = |n: u64| format!("{n} object{}", if n == 1 { "" } else { "s" });
    // An allocation that was not seen has one empty frame.
    let seen = group.frames.iter().any(|frame| frame.address != 0);
    let Ages { oldest, youngest } = group.ages();
    if let Some(test) = &group.test {
        writeln!(f, "  in test {test}")?;
    }
    write!(
        f,
        "  {} leak: {}, {} bytes, ",
        if group.direct { "direct" } else { "indirect" },
        objects(group.leaks.len() as u64),
        group.bytes()
    )?;
    match group.leaks.len() {
        _ if !seen => writeln!(f, "allocated at an unknown time")?,
        1 => writeln!(f, "{} ago", seconds(oldest))?,
        _ => writeln!(f, "first {} ago, last {} ago", seconds(oldest), seconds(youngest))?,
    }
    match group.retains() {
        Count { objects: 0, .. } => {}
        held => writeln!(f, "  holding {}, {} bytes", objects(held.objects), held.bytes)?,
    }
    if let Some(guess) = &first.guess {
        writeln!(f, "  probably {guess}")?;
    }
    match &first.cache {
        Some(cache) if !seen => writeln!(f, "  from cache {cache}")?,
        None if !seen => {}
        Some(cache) => writeln!(f, "  from cache {cache}, by tgid {} on cpu {}", first.tgid, first.cpu)?,
        None => writeln!(f, "  by tgid {} on cpu {}", first.tgid, first.cpu)?,
    }
    first.loss.as_ref().map_or(Ok(()), |loss| lost(f, loss))
}

/// Writes where an object was lost.
fn lost(f: &mut impl Write, loss: &Loss) -> fmt::Result {
    if let Some(reference) = &loss.reference {
        writeln!(f, "  last reference: {}, stored by {}", reference.place, located(&reference.stored_by))?;
    }
    f.write_str("  lost: ")?;
    if let Some(age) = loss.age_ms {
        write!(f, "{} ago, ", seconds(age))?;
    }
    f.write_str(match loss.how {
        How::Overwritten => "overwritten",
        How::Freed => "its holder was freed",
        How::Reused => "the memory of its last reference was allocated again",
        How::Frame => "never stored outside of registers and stacks",
        How::Held => "its last reference remains, and nothing refers to that memory",
    })?;
    match &loss.by {
        Some(frame) => writeln!(f, ", in {}", located(frame))?,
        None => f.write_char('\n')?,
    }
    let stack = if loss.stack.is_empty() { &loss.held } else { &loss.stack };
    stack.iter().take(LOST_FRAMES).try_for_each(|frame| writeln!(f, "  at {}", located(frame)))
}

/// A frame and its source location.
fn located(frame: &Frame) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let _ = frame.write(&mut text, frame.places.last());
    text
}

fn seconds(millis: u64) -> String {
    format!("{}.{} s", millis / 1000, millis % 1000 / 100)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::live::objects::Kind;
    use crate::report::{Format, Function, Place, Reference};

    fn frame(name: &str, offset: u64, size: u64, module: Option<&str>) -> Frame {
        let function = Some(Function { name: name.to_owned(), offset, size, module: module.map(str::to_owned) });
        Frame { address: 0xffff_ffff_8100_0001, function, places: Vec::new() }
    }

    pub(in super::super) fn leak() -> Leak {
        Leak {
            addr: 0xffff_8881_03a4_c1e0,
            size: 20,
            kind: Kind::Slab,
            cache: Some("kmalloc-32".into()),
            guess: None,
            comm: "insmod".into(),
            pid: 412,
            tgid: 411,
            cpu: 1,
            jiffies: 4294953210,
            age: 10,
            head: b"hello\0\0\0\0\0\0\0\0\0\0\x7f~abc".to_vec(),
            shown_cpu: None,
            crc: 0xbeef,
            retains: Count::default(),
            loss: None,
        }
    }

    pub(in super::super) fn report(leaks: Vec<Leak>) -> Report {
        let frames = vec![frame("kmalloc", 0, 0x2b0, None), frame("init", 0x4a, 0xff0, Some("leaky"))];
        let groups = vec![Group { direct: true, test: None, frames, leaks }];
        Report { groups, closing: "libleak: 1\n".into(), ..Report::default() }
    }

    const OBJECT: &str = "unreferenced object 0xffff888103a4c1e0 (size 20):
  comm \"insmod\", pid 412, jiffies 4294953210
  hex dump (first 20 bytes):
    68 65 6c 6c 6f 00 00 00 00 00 00 00 00 00 00 7f  hello...........
    7e 61 62 63                                      ~abc
  backtrace (crc beef):
    kmalloc+0x0/0x2b0
    init+0x4a/0xff0 [leaky]
";

    #[test]
    fn text_is_kmemleaks() {
        assert_eq!(each(&report(vec![leak()]), ""), format!("{OBJECT}libleak: 1\n"));
    }

    #[test]
    fn a_group_is_told_after_its_first_object() {
        let first =
            Leak { age: 61_250, retains: Count { objects: 2, bytes: 192 }, guess: Some("struct foo".into()), ..leak() };
        let report = report(vec![first, leak()]);
        let want = "  direct leak: 2 objects, 40 bytes, first 61.2 s ago, last 0.0 s ago
  holding 2 objects, 192 bytes
  probably struct foo
  from cache kmalloc-32, by tgid 411 on cpu 1
";
        assert_eq!(groups(&report, ""), format!("{OBJECT}{want}libleak: 1\n"));
        assert_eq!(Format::Console.write(&report, false), format!("{CONSOLE}{OBJECT}{want}libleak: 1\n"));
        // Once per object, if every object is written.
        assert_eq!(Format::Console.write(&report, true), format!("{CONSOLE}{OBJECT}{CONSOLE}{OBJECT}libleak: 1\n"));
        // No line may look like a frame to syzkaller.
        for line in want.lines() {
            let word = line.trim_start().split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let next = line.trim_start()[word.clone().next().unwrap().len()..].chars().next();
            assert!(line.starts_with("  ") && !line.starts_with("   ") && !matches!(next, Some('+' | '.')), "{line}");
        }
    }

    #[test]
    fn where_it_was_lost_follows() {
        let by = frame("lose", 12, 32, Some("lost"));
        let reference = Reference { place: "holder+0x40 [lost]".into(), stored_by: frame("set", 37, 64, Some("lost")) };
        let loss = Loss {
            how: How::Overwritten,
            age_ms: Some(1150),
            stack: vec![by.clone(), frame("init", 1, 16, None)],
            by: Some(by),
            held: Vec::new(),
            reference: Some(reference),
        };
        let write = |loss: Loss| groups(&report(vec![Leak { loss: Some(Box::new(loss)), ..leak() }]), "");
        let want = "  by tgid 411 on cpu 1
  last reference: holder+0x40 [lost], stored by set+0x25/0x40 [lost]
  lost: 1.1 s ago, overwritten, in lose+0xc/0x20 [lost]
  at lose+0xc/0x20 [lost]
  at init+0x1/0x10
libleak: 1
";
        let text = write(loss);
        assert!(text.replace("  from cache kmalloc-32, by", "  by").ends_with(want), "{text}");
        assert!(write(Loss::default()).contains("\n  lost: never stored outside of registers and stacks\n"));
    }

    #[test]
    fn one_indirect_leak_has_one_age() {
        let mut report = report(vec![Leak { cache: None, age: 2_000, ..leak() }]);
        report.groups[0].direct = false;
        report.groups[0].test = Some("suite/case + 1".into());
        let want = "  in test suite/case + 1\n  indirect leak: 1 object, 20 bytes, 2.0 s ago\n  by tgid 411 on cpu 1\n";
        assert_eq!(groups(&report, ""), format!("{OBJECT}{want}libleak: 1\n"));
    }

    #[test]
    fn places_in_the_source_follow_frames_and_inlined_functions_have_lines() {
        let mut report = report(vec![leak()]);
        let place = |function: &str, line| Place { function: Some(function.into()), file: "lib/leaky.c".into(), line };
        report.groups[0].frames[1].places = vec![place("inner", 3), place("outer", 0), place("init", 40)];
        let text = each(&report, "");
        let frames = "    kmalloc+0x0/0x2b0
    inner lib/leaky.c:3 [inline]
    outer lib/leaky.c [inline]
    init+0x4a/0xff0 lib/leaky.c:40 [leaky]
";
        assert!(text.contains(frames), "{text}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "so many leaks take minutes under Miri")]
    fn a_flood_is_one_group() {
        let leaks = (0..100_000).map(|i| Leak { addr: 0xffff_8881_0000_0000 + 32 * i, age: 100_000 - i, ..leak() });
        let report = report(leaks.collect());
        let [short, long, json] =
            [(Format::Text, false), (Format::Text, true), (Format::JsonLines, false)].map(|(f, e)| f.write(&report, e));
        assert!(
            short.lines().count() < 20 && short.contains("  direct leak: 100000 objects, 2000000 bytes, first 100.0")
        );
        assert_eq!(long.matches("unreferenced object").count(), 100_000);
        assert_eq!(json.matches("\"address\":").count(), 100_000 + 2);
    }
}
