//! `leak watch`: a live view of a guest's memory.
//!
//! It sets no mark, since a mark changes what scans report. Growth is relative to the first look.

use super::connection::{Connection, Error, output, read};
use super::print;
use detector::control::{By, Count, Live, Place, Request, Status};
use detector::report::Frame;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

/// Sites requested. A booted guest has a few hundred.
const PLACES: usize = 10_000;
/// Most characters of a line on a terminal.
const WIDTH: usize = 100;
/// Moves to the first line and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Seconds between two looks.
const EVERY: std::ops::RangeInclusive<f64> = 0.1..=86_400.0;

/// The state at one moment.
struct Look {
    status: Status,
    live: Live,
}

/// The result of a look.
enum Seen {
    Look(Box<Look>),
    /// There is nothing to see yet. The field gives libleak's reason.
    Nothing(String),
}

/// Shows the guest until it ends.
///
/// # Errors
/// [`Error`], but not the guest's end.
pub fn run(connection: &mut Connection, every: f64, limit: usize) -> Result<(), Error> {
    let is_terminal = std::io::stdout().is_terminal();
    let every = Duration::from_secs_f64(every.clamp(*EVERY.start(), *EVERY.end()));
    let mut first: Option<HashMap<Vec<String>, Count>> = None;
    let mut last: Option<Status> = None;
    loop {
        let look = match look(connection) {
            Ok(look) => look,
            Err(Error::Ended) => break,
            Err(Error::Lost(why)) if why.kind() == std::io::ErrorKind::BrokenPipe => break,
            Err(why) => return Err(why),
        };
        match look {
            Seen::Look(look) => {
                let first = first.get_or_insert_with(|| by_name(&look.live));
                output(&show(&look, last.as_ref(), first, limit, is_terminal))?;
                last = Some(look.status);
            }
            Seen::Nothing(why) => output(&format!("{}{why}\n", if is_terminal { CLEAR } else { "" }))?,
        }
        std::thread::sleep(every);
    }
    output("the guest has ended\n")
}

/// Requests the state.
fn look(connection: &mut Connection) -> Result<Seen, Error> {
    let status: Status = read(&connection.ask(&Request::Status {})?)?;
    if let Some(why) = status.why {
        return Ok(Seen::Nothing(why));
    }
    match connection.ask(&Request::Top { limit: Some(PLACES), by: Some(By::Site) }) {
        Ok(answer) => Ok(Seen::Look(Box::new(Look { status, live: read(&answer)? }))),
        Err(Error::Refused(why)) => Ok(Seen::Nothing(why)),
        Err(why) => Err(why),
    }
}

fn name(place: &Place) -> Vec<String> {
    place.stack.iter().map(Frame::to_string).collect()
}

fn by_name(live: &Live) -> HashMap<Vec<String>, Count> {
    live.places.iter().map(|place| (name(place), place.now)).collect()
}

/// Sites that grew since `first`, by bytes.
fn grown(live: &Live, first: &HashMap<Vec<String>, Count>, limit: usize) -> Vec<Place> {
    let then = |place: &Place| first.get(&name(place)).copied().unwrap_or_default();
    let places = live.places.iter().map(|place| Place { then: then(place), ..place.clone() });
    let mut places: Vec<Place> = places.filter(|place| place.growth() != Count::default()).collect();
    places.sort_by_key(|place| Reverse((place.growth().bytes, place.growth().objects)));
    places.truncate(limit);
    places
}

fn show(
    look: &Look,
    last: Option<&Status>,
    first: &HashMap<Vec<String>, Count>,
    limit: usize,
    is_terminal: bool,
) -> String {
    let Look { status, live } = look;
    let figure = |status: &Status, name: &str| status.figures.get(name).copied().unwrap_or(0);
    let rate = |name: &str| {
        let Some(last) = last else { return 0.0 };
        let seconds = status.at_ms.saturating_sub(last.at_ms).max(1) as f64 / 1e3;
        figure(status, name).saturating_sub(figure(last, name)) as f64 / seconds
    };
    let head = format!(
        "{:.1} s: {:.1} MiB live in {} objects, {:.0} allocations/s, {:.0} frees/s, {} reported",
        status.at_ms as f64 / 1e3,
        live.live.bytes as f64 / f64::from(1 << 20),
        live.live.objects,
        rate("allocations"),
        rate("frees"),
        status.reported.objects
    );
    let rows = grown(live, first, limit).into_iter().map(|place| {
        let growth = place.growth();
        let row = format!("{:>+12} bytes {:>+9} objects  {}", growth.bytes, growth.objects, print::short(&place.stack));
        row
    });
    if is_terminal {
        let release = status.release.as_deref().unwrap_or_default();
        let head = format!("{CLEAR}Linux {release}\n{head}\n\nGrown since leak watch began:");
        let rows = rows.map(|row| row.chars().take(WIDTH).collect());
        [head].into_iter().chain(rows).map(|line: String| line + "\n").collect()
    } else {
        // One row, so that each look is one line.
        let row = rows.map(|row| format!("; {}", row.trim_start())).next();
        head + &row.unwrap_or_default() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use detector::report::Function;

    fn place(name: &str, objects: u64) -> Place {
        let function = Function { name: name.into(), ..Function::default() };
        let frame = Frame { address: 1, function: Some(function), places: Vec::new() };
        Place { then: Count::default(), now: Count { objects, bytes: 32 * objects }, stack: vec![frame] }
    }

    #[test]
    fn what_grows_is_shown_and_how_fast() {
        let live = |counts: [u64; 3]| {
            let places: Vec<Place> = ["a", "b", "c"].into_iter().zip(counts).map(|(n, c)| place(n, c)).collect();
            let count = |of: fn(&Count) -> u64| places.iter().map(|p| of(&p.now)).sum();
            Live { live: Count { objects: count(|c| c.objects), bytes: count(|c| c.bytes) }, total: 3, places }
        };
        let status = |at_ms, allocations| Status {
            at_ms,
            figures: [("allocations".to_owned(), allocations)].into(),
            ..Status::default()
        };
        let first = by_name(&live([1, 2, 3]));
        let look = Look { status: status(3000, 500), live: live([1, 4, 2]) };
        let text = show(&look, Some(&status(1000, 100)), &first, 5, false);
        assert_eq!(
            text,
            "3.0 s: 0.0 MiB live in 7 objects, 200 allocations/s, 0 frees/s, 0 reported; +64 bytes        +2 objects  b\n"
        );
        let text = show(&look, None, &first, 5, true);
        assert!(text.starts_with(CLEAR) && text.ends_with("  b\n") && !text.contains("  a\n"), "{text}");
    }
}
