//! The control socket: requests of other programs while the guest runs. [`detector::control`]
//! describes the requests.
//!
//! - [`socket`]: the socket's file
//! - [`client`]: one client
//! - [`lines`]: its requests
//! - [`answer`]: the answers
//! - [`broadcast`]: events for subscribers

mod answer;
mod client;
mod lines;
mod socket;

pub use socket::{Socket, SocketError};

use crate::ffi::panics;
use crate::{broadcast, diagnostics, ffi};
use answer::{CLIENTS, Problem};
use detector::control::Event;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Most clients at once.
const MAX_CLIENTS: usize = 256;
/// Stack of a client's thread in bytes. JSON is read at most 128 levels deep.
const STACK: usize = 512 << 10;
/// How long QEMU's exit waits until subscribers have read the last events.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The socket. QEMU's exit removes its file; the exit callback has no data that could hold it.
static SOCKET: OnceLock<Socket> = OnceLock::new();

/// Serves a socket.
pub fn start(socket: Socket) {
    let socket = SOCKET.get_or_init(|| socket);
    let spawned = std::thread::Builder::new().name("libleak-control".into()).spawn(move || {
        ffi::signals::block();
        let _ = panics::always(|| accept(socket));
    });
    if let Err(why) = spawned {
        diagnostics::error(&format!("control= has no effect, no thread could be started: {why}"));
    }
}

/// QEMU is exiting: removes the socket, and tells subscribers.
pub fn end() {
    if let Some(socket) = SOCKET.get() {
        socket.remove();
        broadcast::publish(|| Event::End {});
        broadcast::flush(LAST_WORDS);
    }
}

fn accept(socket: &Socket) {
    for stream in socket.listener.incoming() {
        match stream {
            // A panic drops this client alone. The next clients are still served.
            Ok(stream) => drop(panics::always(|| welcome(stream))),
            Err(why) => {
                log::info!("a client was lost: {why}");
                // The process is out of file descriptors, which may pass.
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Starts the thread of a client.
fn welcome(stream: UnixStream) {
    ffi::inject("listener");
    if CLIENTS.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
        CLIENTS.fetch_sub(1, Ordering::Relaxed);
        // The buffer of a new connection has room for a line.
        let _ = stream.set_nonblocking(true);
        client::refuse(&stream, &Problem::Full(MAX_CLIENTS));
        return;
    }
    let stream = Arc::new(stream);
    let theirs = Arc::clone(&stream);
    let spawned = std::thread::Builder::new().name("libleak-client".into()).stack_size(STACK).spawn(move || {
        ffi::signals::block();
        let _ = panics::always(|| {
            if let Err(why) = client::serve(&theirs) {
                log::debug!("a client was given up: {why}");
            }
        });
        CLIENTS.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(why) = spawned {
        log::info!("a client was lost: {why}");
        CLIENTS.fetch_sub(1, Ordering::Relaxed);
        let _ = stream.set_nonblocking(true);
        client::refuse(&stream, &Problem::NoThread(why.to_string()));
    }
}
