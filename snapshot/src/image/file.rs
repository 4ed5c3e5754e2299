//! Random access to the bytes of an image: a plain file, or makedumpfile's flattened form of one.

use super::error::Flaw;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that may be read at any offset, by several threads.
pub(crate) trait Bytes: Send + Sync {
    /// Fills `buf` from offset `at` on.
    ///
    /// # Errors
    /// The file ends before, or the system's error.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()>;

    /// One past the last offset that may be read.
    fn end(&self) -> u64;

    /// Bytes of the file on disk. Everything that is kept of a file is bounded by this.
    fn size(&self) -> u64;
}

/// `len` bytes at offset `at`. `what` names them in errors.
pub(crate) fn part(file: &dyn Bytes, what: &'static str, at: u64, len: u64) -> Result<Vec<u8>, Flaw> {
    within(file, what, at, len)?;
    if len > file.size() {
        return Err(Flaw::Field(what, len));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, at)?;
    Ok(bytes)
}

/// Refuses a part of the file that ends behind the file.
pub(crate) fn within(file: &dyn Bytes, what: &'static str, at: u64, len: u64) -> Result<(), Flaw> {
    match at.checked_add(len) {
        Some(end) if end <= file.end() => Ok(()),
        Some(end) => Err(Flaw::Truncated(what, end, file.end())),
        None => Err(Flaw::Field(what, at)),
    }
}

/// A file as it is.
pub(crate) struct Plain {
    file: File,
    size: u64,
}

impl Plain {
    pub(crate) fn new(file: File) -> io::Result<Plain> {
        let size = file.metadata()?.len();
        Ok(Plain { file, size })
    }
}

impl Bytes for Plain {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, at)
    }

    fn end(&self) -> u64 {
        self.size
    }

    fn size(&self) -> u64 {
        self.size
    }
}

// Tests and fuzzers have images in memory.
impl Bytes for Vec<u8> {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..buf.len()));
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn end(&self) -> u64 {
        self.len() as u64
    }

    fn size(&self) -> u64 {
        self.len() as u64
    }
}

/// The first bytes of makedumpfile's flattened form (`makedumpfile_header`, makedumpfile.h).
pub(crate) const FLATTENED: &[u8] = b"makedumpfile\0\0\0\0";
/// Size of its header in bytes.
const HEADER: u64 = 4096;
/// Size of a segment's own header in bytes: offset and size, both signed and big-endian.
const SEGMENT: u64 = 16;

/// A file in the flattened form: segments that are written to offsets of another file.
pub(crate) struct Flattened {
    file: Box<dyn Bytes>,
    /// Offset in the other file, one past its end there, and offset in this file. Disjoint.
    segments: Vec<(u64, u64, u64)>,
}

impl Flattened {
    /// Reads the headers of all segments. A later segment overwrites earlier ones.
    pub(crate) fn new(file: Box<dyn Bytes>) -> Result<Flattened, Flaw> {
        const WHAT: &str = "flattened segment";
        // The end in the other file and the offset here, by offset in the other file.
        let mut found: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut at = HEADER;
        loop {
            within(&*file, WHAT, at, SEGMENT)?;
            let mut header = [0; SEGMENT as usize];
            file.read_at(&mut header, at)?;
            at += SEGMENT;
            let (offset, size) = header.split_at(8);
            let word = |bytes: &[u8]| bytes.try_into().map_or(0, i64::from_be_bytes);
            let Ok(offset) = u64::try_from(word(offset)) else { break };
            let size = u64::try_from(word(size)).map_err(|_| Flaw::Field("flattened size", u64::MAX))?;
            within(&*file, WHAT, at, size)?;
            let end = offset.checked_add(size).ok_or(Flaw::Field("flattened offset", offset))?;
            put(&mut found, offset, end, at);
            at += size;
        }
        let segments = found.into_iter().map(|(start, (end, at))| (start, end, at)).collect();
        Ok(Flattened { file, segments })
    }
}

/// Adds the segment `[start, end)`, and cuts what it overwrites.
fn put(found: &mut BTreeMap<u64, (u64, u64)>, start: u64, end: u64, at: u64) {
    if start == end {
        return;
    }
    while let Some((&old, &(old_end, old_at))) = found.range(..end).next_back().filter(|(_, (e, _))| *e > start) {
        found.remove(&old);
        if old_end > end {
            found.insert(end, (old_end, old_at + (end - old)));
        }
        if old < start {
            found.insert(old, (start, old_at));
        }
    }
    found.insert(start, (end, at));
}

impl Bytes for Flattened {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let (mut done, mut next) = (0, self.segments.partition_point(|(_, end, _)| *end <= at));
        while done < buf.len() {
            let want = at + done as u64;
            let &(start, end, from) = self.segments.get(next).ok_or(io::ErrorKind::UnexpectedEof)?;
            // The other file has a hole there.
            let hole = start.saturating_sub(want).min((buf.len() - done) as u64) as usize;
            buf[done..done + hole].fill(0);
            done += hole;
            let want = want + hole as u64;
            let n = end.saturating_sub(want).min((buf.len() - done) as u64) as usize;
            if n > 0 {
                self.file.read_at(&mut buf[done..done + n], from + (want - start))?;
            }
            done += n;
            next += 1;
        }
        Ok(())
    }

    fn end(&self) -> u64 {
        self.segments.last().map_or(0, |(_, end, _)| *end)
    }

    fn size(&self) -> u64 {
        self.file.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flattened(segments: &[(i64, &[u8])]) -> Vec<u8> {
        let mut file = FLATTENED.to_vec();
        file.resize(HEADER as usize, 0);
        for (offset, bytes) in segments {
            file.extend(offset.to_be_bytes());
            file.extend((bytes.len() as i64).to_be_bytes());
            file.extend(*bytes);
        }
        file
    }

    #[test]
    fn segments_in_any_order() {
        let file = flattened(&[(8, b"ijkl"), (0, b"abcdefgh"), (3, b"DE"), (7, b"HI"), (14, b"z"), (-1, b"")]);
        let flat = Flattened::new(Box::new(file)).unwrap();
        let mut all = [1; 15];
        flat.read_at(&mut all, 0).unwrap();
        assert_eq!(&all, b"abcDEfgHIjkl\0\0z");
        for at in 0..15 {
            let mut some = [1; 4];
            let n = some.len().min(15 - at);
            flat.read_at(&mut some[..n], at as u64).unwrap();
            assert_eq!(some[..n], all[at..at + n], "at {at}");
        }
        assert!(flat.read_at(&mut [0; 2], 14).is_err() && flat.end() == 15);
    }

    #[test]
    fn flaws() {
        let error = |file: Vec<u8>| Flattened::new(Box::new(file)).err().map(|why| why.to_string()).unwrap_or_default();
        let whole = flattened(&[(0, b"abc"), (-1, b"")]);
        assert_eq!(error(whole.clone()), "");
        // The end is a segment of its own.
        for cut in 0..whole.len() {
            assert!(error(whole[..cut].to_vec()).contains("truncated"), "cut at {cut}");
        }
        let mut huge = whole;
        huge[HEADER as usize + 8..][..8].copy_from_slice(&i64::MAX.to_be_bytes());
        assert!(error(huge.clone()).contains("truncated"));
        huge[HEADER as usize + 8..][..8].copy_from_slice(&i64::MIN.to_be_bytes());
        assert!(error(huge).contains("impossible"));
    }
}
