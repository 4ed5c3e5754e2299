//! Reports in kmemleak's own words: the text of `print_unreferenced()` in mm/kmemleak.c of Linux 6.12.

use super::{Frame, Leak, Report};
use std::cmp::Reverse;
use std::fmt::{self, Write};

/// Bytes shown: HEX_MAX_LINES lines of HEX_ROW_SIZE.
const DUMP: usize = 32;

/// Every object by itself, as kmemleak prints them, and the closing lines.
pub fn each(report: &Report) -> String {
    let mut text = String::new();
    let mut all: Vec<(&Leak, &[Frame])> =
        report.groups.iter().flat_map(|g| g.leaks.iter().map(|l| (l, &g.frames[..]))).collect();
    all.sort_by_key(|(leak, _)| Reverse(leak.age));
    for (leak, frames) in all {
        // Writing to a String does not fail.
        let _ = object(&mut text, leak, frames);
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
        let hex: String = row.iter().map(|b| format!("{b:02x} ")).collect();
        let ascii: String = row.iter().map(|&b| if (0x20..0x7f).contains(&b) { b as char } else { '.' }).collect();
        writeln!(f, "    {hex:<48} {ascii}")?;
    }
    writeln!(f, "  backtrace (crc {:x}):", leak.crc)?;
    for frame in frames {
        writeln!(f, "    {frame}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Kind;
    use crate::report::{Function, Group};

    fn frame(name: &str, offset: u64, size: u64, module: Option<&str>) -> Frame {
        let function = Some(Function { name: name.to_owned(), offset, size, module: module.map(str::to_owned) });
        Frame { address: 1, function, places: Vec::new() }
    }

    #[test]
    fn text_is_kmemleaks() {
        let leak = Leak {
            addr: 0xffff_8881_03a4_c1e0,
            size: 20,
            kind: Kind::Slab,
            cache: Some("kmalloc-32".into()),
            guess: None,
            comm: "insmod".into(),
            pid: 412,
            tgid: 412,
            cpu: 0,
            jiffies: 4294953210,
            age: 10,
            head: b"hello\0\0\0\0\0\0\0\0\0\0\x7f~abc".to_vec(),
            shown_cpu: None,
            crc: 0xbeef,
            retains: (0, 0),
        };
        let frames = vec![frame("kmalloc", 0, 0x2b0, None), frame("init", 0x4a, 0xff0, Some("leaky"))];
        let groups = vec![Group { direct: true, frames, leaks: vec![leak] }];
        let report = Report { groups, closing: "libleak: 1\n".into(), ..Report::default() };
        let want = "unreferenced object 0xffff888103a4c1e0 (size 20):
  comm \"insmod\", pid 412, jiffies 4294953210
  hex dump (first 20 bytes):
    68 65 6c 6c 6f 00 00 00 00 00 00 00 00 00 00 7f  hello...........
    7e 61 62 63                                      ~abc
  backtrace (crc beef):
    kmalloc+0x0/0x2b0
    init+0x4a/0xff0 [leaky]
libleak: 1
";
        assert_eq!(each(&report), want);
    }
}
