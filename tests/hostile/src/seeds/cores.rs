//! Memory images without a kernel: one page, and notes.

/// An ELF core, a kdump file, and the latter flattened.
pub fn all() -> Vec<Vec<u8>> {
    vec![elf(), kdump(), flattened(&kdump())]
}

fn put(file: &mut [u8], at: usize, word: u64) {
    file[at..at + 8].copy_from_slice(&word.to_le_bytes());
}

fn note(name: &[u8; 8], desc: &[u8]) -> Vec<u8> {
    let len = name.iter().position(|&b| b == 0).unwrap_or(7) as u32 + 1;
    [&len.to_le_bytes()[..], &(desc.len() as u32).to_le_bytes(), &[0; 4], name, desc].concat()
}

fn elf() -> Vec<u8> {
    let mut file = vec![0; 64 + 2 * 56];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[16..19].copy_from_slice(&[4, 0, 62]);
    put(&mut file, 32, 64);
    file[54] = 56;
    file[56] = 2;
    let notes = note(b"QEMU\0\0\0\0", &[0x10; 440]);
    let end = file.len() as u64;
    for (i, (kind, at, virt, size)) in
        [(4, end, 0, notes.len()), (1, end + notes.len() as u64, 0xffff_ffff_8100_0000, 4096)].into_iter().enumerate()
    {
        let header = 64 + i * 56;
        file[header] = kind;
        for (field, word) in [at, virt, 0, size as u64, size as u64].into_iter().enumerate() {
            put(&mut file, header + 8 + 8 * field, word);
        }
    }
    [file, notes, vec![0x55; 4096]].concat()
}

fn kdump() -> Vec<u8> {
    let mut file = vec![0; 4 * 4096 + 24];
    file[..8].copy_from_slice(b"KDUMP   ");
    put(&mut file, 428, 4096 | 1 << 32);
    put(&mut file, 436, 2 | 1 << 32);
    (file[2 * 4096], file[3 * 4096]) = (1, 1);
    let end = file.len() as u64;
    put(&mut file, 4 * 4096, end);
    put(&mut file, 4 * 4096 + 8, 11 | 4 << 32);
    // Snappy's length of 4096, a literal, and copies.
    [file, b"\x80\x20\x00a\xfe\x01\x00\xfe\x01\x00\xfe".to_vec()].concat()
}

fn flattened(file: &[u8]) -> Vec<u8> {
    let mut out = b"makedumpfile\0\0\0\0".to_vec();
    out.resize(4096, 0);
    let (first, second) = file.split_at(4096);
    for (at, bytes) in [(4096i64, second), (0, first), (-1, &[])] {
        out.extend(at.to_be_bytes());
        out.extend((bytes.len() as i64).to_be_bytes());
        out.extend(bytes);
    }
    out
}
