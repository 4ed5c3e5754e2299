//! The QEMU process: its version, and that only one libleak is in it.

use std::path::Path;

/// The version of the QEMU that runs, from the text in its own program file: (11, 1).
pub fn qemu_version() -> Option<(u32, u32)> {
    const TEXT: &[u8] = b"QEMU emulator version ";
    let program = std::fs::read(Path::new("/proc/self/exe")).ok()?;
    let at = memchr::memmem::find(&program, TEXT)? + TEXT.len();
    let text = std::str::from_utf8(program.get(at..at + 8)?).ok()?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Claims the process for this libleak. Returns false if another libleak is loaded, even from
/// another file, which has its own statics. Call it only while QEMU starts, on the main thread.
pub fn claim_process() -> bool {
    const NAME: &str = "LIBLEAK_PROCESS";
    let own = std::process::id().to_string();
    if std::env::var(NAME).is_ok_and(|claimed| claimed == own) {
        return false;
    }
    // SAFETY: plugins are installed on the main thread before the machine is made. QEMU's other
    // threads at that time (RCU, the loop of I/O threads) do not read the environment.
    unsafe { std::env::set_var(NAME, own) };
    true
}
