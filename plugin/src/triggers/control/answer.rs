//! Serves requests, and formats the answers as lines.

use crate::session::demand::{Answer, Demand, DemandError, What};
use crate::session::{Session, session};
use checker::names::Names;
use checker::sites::Sites;
use checker::why::Holder;
use detector::control::{By, Envelope, Grown, LIMIT, Live, MAX_LINE, Path, Reasons, Request, SCHEMA, Status};
use detector::objects::Object;
use detector::report::json;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Number of connected clients. Their threads and the accepting thread share it.
pub(super) static CLIENTS: AtomicUsize = AtomicUsize::new(0);
/// Most bytes of a mark's name.
const MAX_NAME: usize = 256;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It cannot be read.
    #[error("this is no request: {0}; send a line of JSON such as {{\"do\":\"status\"}}")]
    NoRequest(String),
    /// It is too long.
    #[error("the line is longer than {MAX_LINE} bytes and was not read; send a shorter one")]
    TooLong,
    /// There are too many clients.
    #[error("{0} clients are connected, the limit; send this again when one has gone")]
    Full(usize),
    /// The system gives no more threads, or no memory for one.
    #[error("no thread can be started to serve this: {0}; send it again later")]
    NoThread(String),
    /// The minimum age is not valid.
    #[error("min_age is no number of seconds; send one of at least 0")]
    MinAge,
    /// The mark's name is too long.
    #[error("the mark's name has {0} bytes; send one of at most {MAX_NAME}")]
    Name(usize),
    /// The path is not absolute.
    #[error("path {0:?} is relative, and QEMU may run in any folder; send one that starts with /")]
    Path(String),
    /// There is no such mark.
    #[error("there is no mark {asked}{kept}; send {{\"do\":\"mark\"}} first, and {{\"do\":\"diff\"}} later", asked = name(.0), kept = kept(.1))]
    NoMark(Option<String>, Vec<String>),
    /// No live object contains the address.
    #[error(
        "no live object contains {0:#x}; it was freed, or it is the kernel's own memory; send an address from a report or from the guest"
    )]
    NoObject(u64),
    /// The demand failed.
    #[error(transparent)]
    Demand(#[from] DemandError),
}

fn name(asked: &Option<String>) -> String {
    asked.as_ref().map_or("to compare with".to_owned(), |name| format!("{name:?}"))
}

fn kept(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(", only {}", names.join(", ")) }
}

/// The line that reports a problem.
pub fn error(problem: &Problem, id: Option<&Value>, request: Option<&str>) -> String {
    let envelope = Envelope { error: Some(problem.to_string()), ..envelope(request, id, Nothing {}) };
    line(&Envelope { ok: false, ..envelope })
}

/// The line before events.
pub fn subscribed(id: Option<&Value>) -> String {
    line(&envelope(Some("events"), id, Nothing {}))
}

#[derive(Serialize)]
struct Nothing {}

fn envelope<T>(request: Option<&str>, id: Option<&Value>, body: T) -> Envelope<T> {
    Envelope {
        schema: SCHEMA,
        name: request.map(str::to_owned),
        id: id.cloned(),
        ok: true,
        error: None,
        pause_microseconds: None,
        body,
    }
}

fn line(envelope: &Envelope<impl Serialize>) -> String {
    // Serialising these types cannot fail.
    serde_json::to_string(envelope).unwrap_or_default() + "\n"
}

/// Serves a request, and returns the answer's line. Blocks until the guest was stopped for it.
pub fn answer(request: Request, id: Option<&Value>) -> String {
    let name = request.name();
    let Some(session) = session() else {
        return error(&DemandError::NotStarted.into(), id, Some(name));
    };
    done(session, request, name, id).unwrap_or_else(|problem| error(&problem, id, Some(name)))
}

fn done(session: &'static Session, request: Request, name: &str, id: Option<&Value>) -> Result<String, Problem> {
    let told = |pause: Duration, body: Value| {
        let envelope = envelope(Some(name), id, body);
        line(&Envelope { pause_microseconds: Some(pause.as_micros() as u64), ..envelope })
    };
    Ok(match request {
        Request::Status {} => line(&envelope(Some(name), id, status(session))),
        Request::Scan { min_age } => {
            let age = min_age.map(|seconds| Duration::try_from_secs_f64(seconds).map_err(|_| Problem::MinAge));
            let min_age = age.transpose()?.unwrap_or_else(|| session.asked_min_age());
            match demand(What::Scan { min_age })? {
                // The report is large, so it is not parsed again.
                (Answer::Report(report), pause) => {
                    let head = told(pause, json!({}));
                    format!("{},{}}}\n", head.trim_end_matches("}\n"), json::fields(&report))
                }
                _ => return Err(confused()),
            }
        }
        Request::Mark { name: Some(name) } if name.len() > MAX_NAME => return Err(Problem::Name(name.len())),
        Request::Mark { name } => match demand(What::Mark { name })? {
            (Answer::Mark(mark), pause) => told(pause, value(mark.told())),
            _ => return Err(confused()),
        },
        Request::Clear {} => match demand(What::Clear)? {
            (Answer::Cleared(count), pause) => told(pause, value(count)),
            _ => return Err(confused()),
        },
        Request::Diff { name: asked, limit, by } => {
            let find = || session.find_mark(asked.as_deref());
            let then = find().ok_or_else(|| Problem::NoMark(asked.clone(), session.mark_names()))?;
            let (sites, pause) = sites()?;
            let by = by.unwrap_or(By::Stack);
            let mut places = named(session, |names| sites.grown_since(&then.sites, names, by))?;
            let (grown, at_ms) = (places.len(), sites.at_ms());
            places.truncate(limit.unwrap_or(LIMIT));
            told(pause, value(Grown { mark: then.told(), live: sites.total(), at_ms, grown, places }))
        }
        Request::Top { limit, by } => {
            let (sites, pause) = sites()?;
            let mut places = named(session, |names| sites.top(names, by.unwrap_or(By::Site)))?;
            let total = places.len();
            places.truncate(limit.unwrap_or(LIMIT));
            told(pause, value(Live { live: sites.total(), total, places }))
        }
        Request::Why { address } => match demand(What::Why { address })? {
            (Answer::Paths(paths), _) if paths.is_empty() => return Err(Problem::NoObject(address)),
            (Answer::Paths(paths), pause) => {
                let paths = named(session, |names| paths.iter().map(|p| path(names, p)).collect())?;
                told(pause, value(Reasons { paths }))
            }
            _ => return Err(confused()),
        },
        Request::Snapshot { path } => {
            let to = PathBuf::from(&path);
            if !to.is_absolute() {
                return Err(Problem::Path(path));
            }
            let (_, pause) = demand(What::Snapshot { path: to })?;
            told(pause, json!({"path": path}))
        }
        Request::Events {} => subscribed(id),
    })
}

/// Demands something and waits for it.
fn demand(what: What) -> Result<(Answer, Duration), Problem> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let reply = Box::new(move |answer| {
        // The client may have disconnected.
        let _ = sender.try_send(answer);
    });
    crate::triggers::demand(Demand { what, reply });
    Ok(receiver.recv().unwrap_or_else(|_| Err(DemandError::no_thread()))?)
}

fn confused() -> Problem {
    DemandError::Confused.into()
}

fn sites() -> Result<(std::sync::Arc<Sites>, Duration), Problem> {
    match demand(What::Sites)? {
        (Answer::Sites(sites), pause) => Ok((sites, pause)),
        _ => Err(confused()),
    }
}

fn named<T>(session: &Session, tell: impl FnOnce(Names<'_>) -> T) -> Result<T, Problem> {
    let tracker = session.tracked().map_err(DemandError::from)?;
    Ok(session.named(&tracker, tell))
}

fn value(of: impl Serialize) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

/// A chain of references for an answer.
fn path(names: Names<'_>, path: &checker::why::Path) -> Path {
    let caller = |object: &Object| names.caller(object).map(|frame| frame.to_string());
    let holder = |holder: &Holder| match holder {
        Holder::Object { addr, size, object, cache, offset, words: _ } => json!({
            "what": "object", "address": format!("{addr:#x}"), "size": size, "kind": value(object.kind()), "cache": cache,
            "caller": caller(object), "offset": offset,
        }),
        Holder::Root { phys, usage, symbol, words: _ } => json!({
            "what": "root", "physical": format!("{:#x}", phys.0), "usage": format!("{usage:?}").to_lowercase(),
            "symbol": symbol.as_ref().map(|(name, offset)| format!("{name}+{offset:#x}")),
        }),
        Holder::Register => json!({"what": "register"}),
        Holder::Known => json!({"what": "known"}),
    };
    Path {
        address: path.addr,
        size: path.size,
        stack: names.frames(&path.object),
        holders: path.holders.iter().map(holder).collect(),
        text: checker::text::path(names, path).lines().map(str::to_owned).collect(),
    }
}

/// The status. The guest is not stopped for it.
fn status(session: &Session) -> Status {
    let mut status = session.status();
    status.clients = CLIENTS.load(Ordering::Relaxed);
    status
}
