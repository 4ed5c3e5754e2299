//! The listener for the events of a kernel: markers, and lines of tests.

use super::console::Console;
use super::marker::{self, Markers};
use crate::ffi::api::Block;
use crate::hooks::guest_events::GuestEvents;
use crate::hooks::table::Event;
use crate::hooks::tracker::Tracker;
use crate::session::Session;
use guest_symbols::VirtAddr;
use libc::c_uint;
use std::sync::Arc;

/// Listens to one kernel.
struct Listener {
    session: &'static Session,
    markers: Markers,
    console: Console,
}

/// Makes the listener for a kernel.
pub fn listen(session: &'static Session) -> Arc<dyn GuestEvents> {
    Arc::new(Listener { session, markers: Markers::new(session), console: Console::new(session) })
}

impl GuestEvents for Listener {
    fn event(&self, tracker: &Tracker, vcpu: c_uint, event: Event<u64>) {
        match event {
            Event::Kexec => self.session.kexec(vcpu),
            Event::RestoreImage => self.session.restore_image(vcpu),
            Event::WriteComm { buf, count } => self.markers.comm(tracker, vcpu, VirtAddr(buf), count),
            Event::SetComm => self.markers.comm_copied(tracker, vcpu),
            Event::WriteKmsg { from } => self.markers.kmsg(tracker, vcpu, VirtAddr(from)),
            Event::Printk { entry } => {
                self.markers.kmsg_copied(tracker, vcpu, VirtAddr(entry));
                self.console.printk(tracker, vcpu, VirtAddr(entry));
            }
            Event::PrintkPart { entry } => {
                self.markers.kmsg_copied(tracker, vcpu, VirtAddr(entry));
                self.console.printk_part(tracker, vcpu, VirtAddr(entry));
            }
            Event::WriteTty { tty, buf, count } => {
                self.console.tty(tracker, vcpu, VirtAddr(tty), VirtAddr(buf), count);
            }
            Event::WritePort { buf, count } => self.console.port(tracker, vcpu, VirtAddr(buf), count),
            Event::WritePipe { iocb, from } => self.console.pipe(tracker, VirtAddr(iocb), VirtAddr(from)),
        }
    }

    fn translate(&self, tracker: &Tracker, block: Block) {
        marker::translate(tracker, block);
    }
}
