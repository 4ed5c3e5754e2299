//! Signals are QEMU's, for its own threads: ours must not get any.

/// Calls `make` with all signals blocked, so that the threads that it starts have them blocked for
/// good.
pub fn while_blocked<T>(make: impl FnOnce() -> T) -> T {
    /// Gives the thread its own signals back, also when `make` panics.
    struct Restore(libc::sigset_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: the set is the one that libc filled below, and is applied to this thread
            // only.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
        }
    }
    // SAFETY: sets are plain bits, for which zeroes are a value; both are on the stack and filled
    // by libc, and only this thread's signals change.
    let _restore = unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        Restore(before)
    };
    make()
}

/// Lets a write beyond the limit on the size of files (`ulimit -f`) fail like one on a full disk.
/// It would end QEMU otherwise, unless that has a handler of its own.
pub fn survive_large_files() {
    // SAFETY: a plain struct that libc fills, and a disposition without a handler.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGXFSZ, std::ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_DFL {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        }
    }
}

/// Opens /dev/null in place of those of stdin, stdout and stderr that are closed: the next file
/// that is opened would be taken for them, and messages would be written into it.
pub fn fill_standard_files() {
    for fd in 0..3 {
        // SAFETY: no memory but a string constant is involved. open() takes the lowest number that
        // is free, which is this one, since those below are open by now.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) == -1 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            }
        }
    }
}

/// Blocks all signals for this thread, one of ours.
pub fn block() {
    // SAFETY: a set on the stack, filled by libc, applied to this thread only.
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
