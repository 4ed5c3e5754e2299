//! QEMU in the background (-daemonize). When it has started, it changes to the folder / and closes
//! stderr (os_setup_post(), os-posix.c). Plugins are loaded before that, in the process that stays.

use crate::options::Options;
use std::path::{Path, PathBuf};

/// Whether this QEMU will go to the background.
pub fn is_daemon() -> bool {
    std::fs::read("/proc/self/cmdline").is_ok_and(|words| asks(&words))
}

/// Whether a command line asks for it. Each word ends with a NUL.
fn asks(words: &[u8]) -> bool {
    words.split(|&byte| byte == 0).any(|word| matches!(word, b"-daemonize" | b"--daemonize"))
}

/// No one would see a report.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("QEMU has no stderr after -daemonize, so reports would be lost; add report=PATH")]
pub struct NoReport;

/// Adapts the options: paths become absolute.
///
/// # Errors
/// [`NoReport`].
pub fn settle(options: &mut Options) -> Result<(), NoReport> {
    if options.reports.is_empty() {
        return Err(NoReport);
    }
    let files = options.reports.iter_mut().map(|report| &mut report.path);
    let single = [&mut options.suppress_print, &mut options.qmp, &mut options.snapshot, &mut options.control];
    files.chain(options.debug.iter_mut()).chain(single.into_iter().flatten()).for_each(from_here);
    options.background = true;
    Ok(())
}

fn from_here(path: &mut PathBuf) {
    if let Ok(absolute) = std::path::absolute(Path::new(path)) {
        *path = absolute;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_option_itself() {
        assert!(asks(b"qemu-system-x86_64\0-daemonize\0-m\x001G\0") && asks(b"qemu\0--daemonize\0"));
        assert!(!asks(b"qemu-system-x86_64\0-name\0a-daemonize\0") && !asks(b""));
    }

    #[test]
    fn paths_are_of_the_folder_that_it_was_started_in() {
        let mut options = Options::parse(["report=leaks", "control=/run/leak", "snapshot=a/s"]).unwrap();
        settle(&mut options).unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(options.reports[0].path, here.join("leaks"));
        assert_eq!((options.control, options.snapshot), (Some("/run/leak".into()), Some(here.join("a/s"))));
        let none = settle(&mut Options::parse(["control=/run/leak"]).unwrap());
        assert!(none.unwrap_err().to_string().contains("report=PATH"));
    }
}
