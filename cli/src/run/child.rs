//! Runs the command and forwards signals to it.

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its status, or 128 plus the signal that killed it, as in shells.
    pub status: u8,
    /// Whether this process got a signal meanwhile.
    pub interrupted: bool,
}

/// Forwards signals to the command. Signals are caught before it starts.
pub struct Forwarding {
    signals: Signals,
    interrupted: Arc<AtomicBool>,
}

impl Forwarding {
    /// Catches the signals, which then no longer end this process.
    ///
    /// # Errors
    /// The error of the system.
    pub fn start() -> io::Result<Forwarding> {
        // Signals that are ignored, as under nohup, stay ignored in the command.
        let ignored = std::fs::read_to_string("/proc/self/status").map(|status| ignored(&status)).unwrap_or_default();
        let taken = [SIGHUP, SIGINT, SIGQUIT, SIGTERM].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
        let signals = Signals::new(taken)?;
        Ok(Forwarding { signals, interrupted: Arc::new(AtomicBool::new(false)) })
    }

    /// Starts the command and waits for it. `started` gets its process ID.
    ///
    /// # Errors
    /// The error of the system.
    pub fn run(mut self, command: &mut Command, started: impl FnOnce(u32)) -> io::Result<Ended> {
        let mut child = command.spawn()?;
        started(child.id());
        // `None` once the command has ended, since its ID may be reused.
        let target = Arc::new(Mutex::new(pid(&child)));
        let handle = self.signals.handle();
        let (theirs, interrupted) = (target.clone(), self.interrupted.clone());
        let forwarder = std::thread::spawn(move || {
            for signal in self.signals.forever() {
                interrupted.store(true, Ordering::Relaxed);
                let target = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(pid) = target.filter(|_| !came_from_terminal(signal))
                    && let Some(signal) = Signal::from_named_raw(signal)
                {
                    // The command may just have ended.
                    let _ = kill_process(pid, signal);
                }
            }
        });
        let status = wait(&mut child, &target);
        handle.close();
        let _ = forwarder.join();
        Ok(Ended { status: code(status?), interrupted: self.interrupted.load(Ordering::Relaxed) })
    }
}

/// The set of ignored signals in /proc/PID/status.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// Waits for the command. No signal is sent after it was reaped.
fn wait(child: &mut Child, target: &Mutex<Option<Pid>>) -> io::Result<ExitStatus> {
    if let Some(pid) = pid(child) {
        let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = rustix::process::waitid(rustix::process::WaitId::Pid(pid), options) {}
    }
    *target.lock().unwrap_or_else(PoisonError::into_inner) = None;
    child.wait()
}

fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// A terminal sends these signals to all foreground processes, including the command.
fn came_from_terminal(signal: i32) -> bool {
    let foreground = || rustix::termios::tcgetpgrp(std::fs::File::open("/dev/tty").ok()?).ok();
    matches!(signal, SIGINT | SIGQUIT) && foreground() == Some(getpgrp())
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, started: impl FnOnce(u32)) -> Ended {
        Forwarding::start().unwrap().run(Command::new("sh").args(["-c", script]), started).unwrap()
    }

    #[test]
    fn ignored_signals_are_read() {
        assert_eq!(ignored("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t1\n"), 0x1001);
        assert_eq!(ignored(""), 0);
    }

    /// One test, since signals affect the whole process.
    #[test]
    fn statuses_and_signals_are_the_commands() {
        assert_eq!(run("exit 3", |_| ()), Ended { status: 3, interrupted: false });
        assert_eq!(run("kill -9 $$", |_| ()).status, 137);
        let own = rustix::process::getpid();
        let ended = run("trap 'exit 5' TERM; kill -TERM $PPID; sleep 20 & wait", |_| ());
        assert_eq!((ended, own), (Ended { status: 5, interrupted: true }, rustix::process::getpid()));
    }
}
