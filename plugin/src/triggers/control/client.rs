//! Serves one client of the control socket. Each client has its own thread, so a slow client delays
//! no one else.

use super::answer::{self, Problem};
use super::lines::{Line, Lines};
use crate::broadcast;
use crate::ffi::inject;
use crossbeam_channel::RecvTimeoutError;
use detector::control::{Event, MAX_LINE, Request};
use serde_json::Value;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Longest time for one write.
const WRITE: Duration = Duration::from_secs(5);
/// Longest time in which a client has to read one answer.
const ANSWER: Duration = Duration::from_secs(60);
/// How often a subscriber's presence is checked.
const PRESENCE: Duration = Duration::from_millis(500);

/// Serves a client until it disconnects.
///
/// # Errors
/// Why the client was dropped.
pub fn serve(stream: &UnixStream) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE))?;
    let mut lines = Lines::new(stream, MAX_LINE);
    loop {
        let line = match lines.next()? {
            Line::Whole(line) => line,
            Line::TooLong => {
                write(stream, &answer::error(&Problem::TooLong, None, None))?;
                continue;
            }
            Line::End => return Ok(()),
        };
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        inject("client");
        let (id, request) = read(&line);
        match request {
            Ok(Request::Events {}) => {
                // Subscribed before the answer, so that no later event is missed.
                let subscription = broadcast::subscribe();
                write(stream, &answer::subscribed(id.as_ref()))?;
                return tell(stream, &subscription);
            }
            Ok(request) => write(stream, &answer::answer(request, id.as_ref()))?,
            Err(problem) => write(stream, &answer::error(&problem, id.as_ref(), None))?,
        }
    }
}

/// Tells a client that it cannot be served. Does not block on a non-blocking socket.
pub fn refuse(stream: &UnixStream, why: &Problem) {
    let _ = write(stream, &answer::error(why, None, None));
}

/// The request of a line, and its `id`.
fn read(line: &[u8]) -> (Option<Value>, Result<Request, Problem>) {
    let mut object = match serde_json::from_slice(line) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return (None, Err(Problem::NoRequest("it is no object".to_owned()))),
        Err(why) => return (None, Err(Problem::NoRequest(why.to_string()))),
    };
    let id = object.remove("id");
    let request = serde_json::from_value(Value::Object(object));
    (id, request.map_err(|why| Problem::NoRequest(why.to_string())))
}

/// Writes events until the client disconnects.
fn tell(mut stream: &UnixStream, subscription: &broadcast::Subscription) -> io::Result<()> {
    inject("events");
    stream.set_read_timeout(Some(Duration::from_millis(1)))?;
    loop {
        match subscription.next(PRESENCE, |line| write(stream, line)) {
            Ok(written) => written?,
            Err(RecvTimeoutError::Disconnected) => return write(stream, &broadcast::line(&Event::Dropped {})),
            Err(RecvTimeoutError::Timeout) => match stream.read(&mut [0; 512]) {
                Ok(0) => return Ok(()),
                // Input of subscribers is ignored.
                Ok(_) => {}
                Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(why) => return Err(why),
            },
        }
    }
}

/// Writes a line, unless the client reads too slowly.
fn write(mut stream: &UnixStream, line: &str) -> io::Result<()> {
    let began = Instant::now();
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        if began.elapsed() > ANSWER {
            return Err(ErrorKind::TimedOut.into());
        }
        match stream.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => rest = &rest[n..],
            Err(why) if why.kind() == ErrorKind::Interrupted => {}
            Err(why) => return Err(why),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    /// A client, and the thread that serves it, without a guest.
    fn client() -> (BufReader<UnixStream>, std::thread::JoinHandle<io::Result<()>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        (BufReader::new(ours), std::thread::spawn(move || serve(&theirs)))
    }

    fn ask(client: &mut BufReader<UnixStream>, line: &[u8]) -> Value {
        client.get_mut().write_all(line).unwrap();
        client.get_mut().write_all(b"\n").unwrap();
        answer(client)
    }

    fn answer(client: &mut BufReader<UnixStream>) -> Value {
        let mut line = String::new();
        client.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn whatever_comes_is_answered_in_words() {
        let (mut client, thread) = client();
        let long = vec![b'x'; 1 << 20];
        let deep = "[".repeat(60_000);
        let garbage: [&[u8]; 9] = [
            b"nonsense",
            b"\xff\xfe\x00",
            b"[]",
            b"7",
            b"{\"do\":\"dance\"}",
            b"{\"do\":\"why\"}",
            b"{\"do\":\"scan\",\"min_age\":\"x\"}",
            &long,
            deep.as_bytes(),
        ];
        for line in garbage {
            let answer = ask(&mut client, line);
            assert_eq!((&answer["schema"], &answer["ok"]), (&1.into(), &false.into()), "{answer}");
            assert!(answer["error"].as_str().is_some_and(|e| e.contains("send ")), "{answer}");
        }
        // Empty lines are not answered.
        let answer = ask(&mut client, b"\n \r\n{\"do\":\"dance\",\"id\":[7]}");
        assert_eq!(answer["id"], serde_json::json!([7]));
        assert!(answer["error"].as_str().unwrap().contains("`scan`"), "{answer}");
        drop(client);
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_client_that_goes_is_let_go() {
        let (mut client, thread) = client();
        client.get_mut().write_all(b"{\"do\":").unwrap();
        drop(client);
        thread.join().unwrap().unwrap();
        // The client disconnects in the middle of an answer. This is an error of the connection,
        // not a signal.
        let (mut client, thread) = self::client();
        client.get_mut().write_all(&b"{}\n".repeat(200_000)).unwrap_or_default();
        drop(client);
        assert!(thread.join().unwrap().is_err());
    }

    #[test]
    fn subscribers_are_told_and_let_go() {
        let (mut client, thread) = client();
        assert_eq!(ask(&mut client, b"{\"do\":\"events\",\"id\":1}")["id"], 1);
        broadcast::publish(|| Event::End {});
        assert_eq!(answer(&mut client)["event"], "end");
        drop(client);
        thread.join().unwrap().unwrap();
    }
}
