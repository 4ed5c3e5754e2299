//! libleak.so: a QEMU TCG plugin that finds memory leaks in a Linux guest's kernel from outside.
//!
//! This file has the symbols and callbacks that QEMU needs of a plugin. The plugin API has version
//! 4 (QEMU 9.2) to 7 (QEMU 11.1).

#![deny(unsafe_code)]

mod broadcast;
mod daemon;
pub mod diagnostics;
#[expect(unsafe_code, reason = "contact with QEMU and libc")]
pub mod ffi;
mod file;
pub mod history;
pub mod hooks;
pub mod options;
pub mod output;
pub mod pause;
pub mod session;
pub mod triggers;

use ffi::witness::GuestStopped;
use ffi::{allocator, api, guard, host, inject, panics, regs, signals};
use hooks::current;
use libc::{c_char, c_int, c_uint, c_void};
use options::{OptionError, Options};
use qemu_plugin_sys::{qemu_info_t, qemu_plugin_tb};
use session::{Session, StartError, session};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use triggers::control::{self, Socket, SocketError};

/// The API version that the plugin asks for. QEMU reads it after the constructor has run.
#[expect(unsafe_code, reason = "symbols and arguments of QEMU and the loader")]
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: AtomicI32 = AtomicI32::new(4);

/// Runs when QEMU loads the library, before QEMU looks up symbols.
#[expect(unsafe_code, reason = "symbols and arguments of QEMU and the loader")]
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    // Not in other programs, such as this crate's tests.
    if api::lookup("qemu_plugin_register_vcpu_init_cb").is_some() {
        panics::install_hook();
        signals::fill_standard_files();
    }
    guard(|| {
        inject("constructor");
        qemu_plugin_version.store(choose_version(), Ordering::Relaxed);
    });
}

/// The API version that this QEMU accepts.
fn choose_version() -> c_int {
    let has = |name| api::lookup(name).is_some();
    if !has("qemu_plugin_read_register") || !has("qemu_plugin_scoreboard_new") {
        // Before 9.0. QEMU's own message about version 4 would not say what is needed.
        return 1;
    }
    match host::qemu_version() {
        Some(version) if version >= (11, 1) => 7,
        // The program file has no version. 11.0 accepts version 4, and this function came with
        // 11.1.
        None if has("qemu_plugin_register_vcpu_syscall_filter_cb") => 7,
        _ => 4,
    }
}

/// The library was loaded a second time, so QEMU does not start. The exit callback has no data that
/// could hold this.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// QEMU's entry point.
///
/// # Safety
/// Called by QEMU, with a valid `info`, and `argc` C strings at `argv`.
#[expect(unsafe_code, reason = "symbols and arguments of QEMU and the loader")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    info: *const qemu_info_t,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let mut status = -1;
    guard(|| {
        inject("install");
        // SAFETY: by this function's own contract.
        let (target, system, version, words) = unsafe {
            let words: Vec<String> = (0..argc.max(0) as usize).map(|i| api::string(*argv.add(i))).collect();
            (api::string((*info).target_name), (*info).system_emulation, (*info).version.cur, words)
        };
        match install(id, &target, system, version, &words) {
            Ok(()) => status = 0,
            Err(InstallError::Options(OptionError::Help(text))) => text.lines().for_each(diagnostics::line),
            Err(why) => format!("error: {why}").lines().for_each(diagnostics::line),
        }
    });
    status
}

/// Why QEMU is not to start.
#[derive(Debug, thiserror::Error)]
enum InstallError {
    /// Another libleak has this process.
    #[error("another libleak is loaded in this QEMU already; give -plugin once, with all options")]
    Twice,
    /// The logger.
    #[error(transparent)]
    Log(#[from] log::SetLoggerError),
    /// This QEMU is not supported.
    #[error("{0}; libleak needs qemu-system-x86_64, version 9.2 to 11.1, with the TCG accelerator")]
    Unsupported(#[from] Unsupported),
    /// The options are wrong.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// No one would see a report of a QEMU in the background.
    #[error(transparent)]
    NoReport(#[from] daemon::NoReport),
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An option's file.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Why this QEMU is not supported.
#[derive(Debug, thiserror::Error)]
enum Unsupported {
    /// It emulates no machine.
    #[error("this is linux-user QEMU, which runs no kernel")]
    LinuxUser,
    /// It emulates another architecture.
    #[error("this QEMU emulates {0}")]
    Target(String),
    /// Its plugin API is too old.
    #[error("this QEMU is too old (its plugin API is version {0}, 4 is needed)")]
    Version(c_int),
    /// It lacks a function of the plugin API.
    #[error(transparent)]
    Function(#[from] api::MissingFunction),
}

#[expect(unsafe_code, reason = "symbols and arguments of QEMU and the loader")]
fn install(id: u64, target: &str, system: bool, version: c_int, words: &[String]) -> Result<(), InstallError> {
    if !host::claim_process() {
        // QEMU ends now, before a guest runs. No report is needed.
        REFUSED.store(true, Ordering::Relaxed);
        return Err(InstallError::Twice);
    }
    signals::survive_large_files();
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("LIBLEAK_LOG", "warn")).try_init()?;
    if !system {
        return Err(Unsupported::LinuxUser.into());
    }
    if target != "x86_64" {
        return Err(Unsupported::Target(target.to_owned()).into());
    }
    if version < 4 {
        return Err(Unsupported::Version(version).into());
    }
    api::load().map_err(Unsupported::from)?;
    let mut options = Options::parse(words.iter().map(String::as_str))?;
    if daemon::is_daemon() {
        daemon::settle(&mut options)?;
    }
    allocator::set_aside(options.max_memory);
    // Before report files are emptied: this may fail.
    let socket = options.control.as_deref().map(Socket::bind).transpose()?;
    let session = Session::start(options, triggers::listen)?;
    let with_id = version < api::VERSION_WITHOUT_ID;
    let null = std::ptr::null_mut();
    let pick = |with: *const c_void, without: *const c_void| if with_id { with } else { without };
    let init = pick(vcpu_init_with_id as *const c_void, vcpu_init as *const c_void);
    let trans = pick(tb_trans_with_id as *const c_void, tb_trans as *const c_void);
    let flush = pick(flush_with_id as *const c_void, flush as *const c_void);
    let exit = pick(at_exit_with_id as *const c_void, at_exit as *const c_void);
    // SAFETY: QEMU calls each with the arguments of the version it announced, which chose the
    // functions; they outlive the process, since plugins are not unloaded.
    unsafe {
        (api::api().register_vcpu_init)(id, init, null);
        (api::api().register_tb_trans)(id, trans, null);
        (api::api().register_flush)(id, flush, null);
        (api::api().register_atexit)(id, exit, null);
    }
    ffi::ram::watch();
    triggers::start(session);
    if let Some(socket) = socket {
        control::start(socket);
    }
    Ok(())
}

extern "C" fn vcpu_init_with_id(_id: u64, vcpu: c_uint) {
    vcpu_init(vcpu, std::ptr::null_mut());
}

extern "C" fn vcpu_init(_vcpu: c_uint, _userdata: *mut c_void) {
    guard(|| {
        inject("vcpu-init");
        if let Err(missing) = regs::init_vcpu() {
            diagnostics::error(&format!("{missing}: nothing can be tracked"));
        }
        // A vCPU may be plugged in while a kernel is tracked.
        if let Some(tracker) = current::tracker() {
            tracker.calls.show_flag();
        }
    });
}

extern "C" fn tb_trans_with_id(_id: u64, tb: *mut qemu_plugin_tb) {
    tb_trans(tb, std::ptr::null_mut());
}

#[expect(unsafe_code, reason = "symbols and arguments of QEMU and the loader")]
extern "C" fn tb_trans(tb: *mut qemu_plugin_tb, _userdata: *mut c_void) {
    guard(|| {
        inject("translate");
        if let Some(session) = session() {
            // SAFETY: QEMU's own argument, used within its callback.
            session.translate(unsafe { api::Block::new(tb) });
        }
    });
}

extern "C" fn flush_with_id(_id: u64) {
    flush(std::ptr::null_mut());
}

extern "C" fn flush(_userdata: *mut c_void) {
    guard(|| {
        inject("flush");
        if let Some(session) = session() {
            session.flushed();
        }
    });
}

extern "C" fn at_exit_with_id(_id: u64, userdata: *mut c_void) {
    at_exit(userdata);
}

#[expect(unsafe_code, reason = "states that the guest is stopped")]
extern "C" fn at_exit(_userdata: *mut c_void) {
    let Some(session) = session().filter(|_| !REFUSED.load(Ordering::Relaxed)) else { return };
    // Also after a panic: what was known until then is reported.
    if let Err(why) = panics::always(|| {
        // SAFETY: QEMU calls this when it exits; its vCPUs have stopped.
        session.exit(&unsafe { GuestStopped::new() });
    }) {
        let _ =
            panics::always(|| diagnostics::error(&format!("no result: the check failed by an internal error: {why}")));
    }
    let _ = panics::always(control::end);
}
