//! Signals are handled by QEMU's threads. libleak's threads block them.

/// Calls `make` with all signals blocked. Threads that it starts inherit this.
pub fn while_blocked<T>(make: impl FnOnce() -> T) -> T {
    /// Restores the thread's signals, also if `make` panics.
    struct Restore(libc::sigset_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: libc has filled the set below. It is applied to this thread only.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
        }
    }
    // SAFETY: sets are plain bits, for which zeroes are valid. Both are on the stack and are filled
    // by libc. Only this thread's signals change.
    let _restore = unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        Restore(before)
    };
    make()
}

/// Makes a write beyond the limit on file sizes (`ulimit -f`) fail as on a full disk. By default it
/// would end QEMU. A handler of QEMU is kept.
pub fn survive_large_files() {
    // SAFETY: libc fills the plain struct. The new disposition has no handler.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGXFSZ, std::ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_DFL {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        }
    }
}

/// Opens /dev/null for those of stdin, stdout and stderr that are closed. Otherwise the next opened
/// file would get the number, and messages would be written into it.
pub fn fill_standard_files() {
    for fd in 0..3 {
        // SAFETY: only a string constant is passed. open() takes the lowest free number. It is this
        // one, because lower numbers are open by now.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) == -1 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            }
        }
    }
}

/// Blocks all signals for this thread.
pub fn block() {
    // SAFETY: the set is on the stack and filled by libc. It is applied to this thread only.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_blocked(signal: i32) -> bool {
        // SAFETY: as above; nothing is changed.
        unsafe {
            let mut now: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &mut now);
            libc::sigismember(&now, signal) == 1
        }
    }

    #[test]
    fn threads_that_are_started_meanwhile_have_them_blocked() {
        let pool = while_blocked(|| checker::threads::pool(std::num::NonZeroUsize::new(2))).unwrap();
        assert_eq!(pool.broadcast(|_| is_blocked(libc::SIGTERM)), [true, true]);
        assert!(!is_blocked(libc::SIGTERM));
    }
}
