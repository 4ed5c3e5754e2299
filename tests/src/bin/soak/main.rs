//! Runs one QEMU for an hour or a night: a guest under load that is reset now and then, and a
//! client that sends every kind of request.
//!
//! `scripts/soak` builds and runs it, and lists its options. The load leaks nothing, so every
//! report is false.

#![forbid(unsafe_code)]

mod arguments;
mod asking;
mod memory;
mod random;
mod samples;
mod verdict;

use ::tests::{Boot, Guest};
use arguments::{Arguments, Plugin};
use asking::{Client, Connection, PATIENCE};
use memory::Memory;
use random::Random;
use samples::Sample;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// The time between two samples.
const PERIOD: Duration = Duration::from_secs(10);
/// The guest's memory in MiB. QEMU touches all of it at the start.
const MEMORY: u32 = 1024;

/// Files and sockets.
struct Places {
    out: PathBuf,
    sockets: PathBuf,
}

/// State that the threads share.
struct Shared {
    places: Places,
    began: Instant,
    /// The number of the current boot, from 1, the time when it was up, and addresses of its
    /// objects.
    boot: Mutex<(u32, Instant, Vec<u64>)>,
    over: AtomicBool,
}

/// The results.
pub struct Outcome {
    samples: Vec<Sample>,
    client: Client,
    resets: u32,
    /// Problems while the guest ran.
    troubles: Vec<String>,
    boot: Boot,
    console: String,
    reports: String,
    minutes: f64,
}

impl Places {
    fn new(out: &Path) -> std::io::Result<Places> {
        // The path of a socket is limited.
        let sockets = std::env::temp_dir().join(format!("libleak-soak-{}", std::process::id()));
        std::fs::create_dir_all(&sockets)?;
        std::fs::create_dir_all(out)?;
        // Files of an earlier run are removed.
        for name in ["console", "pid", "reports", "snapshot"] {
            let _ = std::fs::remove_file(out.join(name));
        }
        Ok(Places { out: out.canonicalize()?, sockets })
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.sockets.join(name)
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.out.join("console")).unwrap_or_default()).replace('\r', "")
    }

    fn guest(&self, arguments: &Arguments) -> Guest {
        let path = |name: &str| self.out.join(name).display().to_string();
        let server = |name: &str| format!("unix:{},server=on,wait=off", self.socket(name).display());
        let (serial, monitor, process) = (server("serial"), server("monitor"), path("pid"));
        let seconds = arguments.run.as_secs() as u32;
        let mut guest = Guest::new("soak", &arguments.kernel)
            .memory(MEMORY)
            .accel(&format!("tcg,tb-size={}", arguments.tb_size))
            .console(&self.out.join("console"))
            .limit(2 * seconds + 900)
            // On a busy host the kernel finds its timer broken and panics.
            .append("no_timer_check")
            .script("soak", include_str!("guest.sh"))
            .run(&["soak", &format!("stress:{}", 2 * seconds + 3600)]);
        let options = [
            "scan=20".to_owned(),
            format!("control={}", self.socket("control").display()),
            format!("report={}", path("reports")),
        ];
        guest = match &arguments.plugin {
            Plugin::Built => options.iter().fold(guest, |guest, option| guest.option(option)),
            Plugin::None => guest.without_plugin(),
            Plugin::File(file) => {
                let words = [file.replace(',', ",,"), options.map(|o| o.replace(',', ",,")).join(",")];
                guest.without_plugin().qemu_arg("-plugin").qemu_arg(&words.join(","))
            }
        };
        if let Some(qemu) = &arguments.qemu {
            guest = guest.qemu(qemu);
        }
        // scripts/boot sets -no-reboot. The last option wins.
        for word in
            ["-serial", &serial, "-monitor", &monitor, "-pidfile", &process, "-action", "reboot=reset", "-mem-prealloc"]
        {
            guest = guest.qemu_arg(word);
        }
        guest
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Sleeps, at most until the end.
    fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_over() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
        }
    }

    /// Takes samples until the end, and writes each to the file.
    fn sample(&self) -> Vec<Sample> {
        let mut file = File::create(self.places.out.join("samples.tsv")).expect("a file for samples");
        file.write_all(Sample::head().as_bytes()).expect("room for samples");
        let (mut samples, mut connection) = (Vec::new(), None);
        while !self.is_over() {
            let process = std::fs::read_to_string(self.places.out.join("pid")).ok().and_then(|p| p.trim().parse().ok());
            if let Some(memory) = process.and_then(|p| Memory::of(p, MEMORY.into())) {
                if connection.is_none() {
                    connection = Connection::to(&self.places.socket("control")).ok();
                }
                let status = connection.as_mut().and_then(|c: &mut Connection| c.ask(&json!({"do": "status"})).ok());
                connection = connection.filter(|_| status.is_some());
                let (boot, up, _) = *self.boot.lock().expect("no panic");
                let status = status.unwrap_or(Value::Null);
                let sample = Sample { at: self.began.elapsed(), boot, since_boot: up.elapsed(), memory, status };
                file.write_all(sample.line().as_bytes()).expect("room for samples");
                samples.push(sample);
            }
            self.sleep(PERIOD);
        }
        samples
    }

    /// Sends requests until the end.
    fn ask(&self, seed: u64) -> Client {
        let mut client = Client::new(&self.places.socket("control"), &self.places.out.join("snapshot"), seed);
        let mut known = 0;
        while !self.is_over() {
            let (boot, _, addresses) = self.boot.lock().expect("no panic").clone();
            if boot == 0 {
                self.sleep(Duration::from_millis(500));
                continue;
            }
            if boot != known {
                known = boot;
                client.learn(addresses);
            }
            let pause = client.pause();
            self.sleep(pause);
            if !self.is_over() {
                client.ask();
            }
        }
        client
    }
}

/// The guest's thread, and the ways to control it.
struct Director<'a, 'scope> {
    shared: &'a Shared,
    guest: &'a ScopedJoinHandle<'scope, Boot>,
    troubles: Vec<String>,
    resets: u32,
}

impl Director<'_, '_> {
    fn tell(&self, socket: &str, what: &str) {
        let told = UnixStream::connect(self.shared.places.socket(socket)).and_then(|mut s| {
            s.write_all(format!("{what}\n").as_bytes())?;
            // QEMU must read the command before the connection closes.
            std::thread::sleep(Duration::from_secs(1));
            Ok(())
        });
        if let Err(why) = told {
            println!("could not say {what:?} to the {socket}: {why}");
        }
    }

    /// Waits until this many boots are up. Returns false if QEMU ended or if it takes too long.
    fn wait_for_boot(&mut self, number: u32) -> bool {
        let since = Instant::now();
        // The first boot may wait for the download of a kernel.
        let patience = if number == 1 { 5 * PATIENCE } else { PATIENCE };
        loop {
            let console = self.shared.places.console();
            if console.matches("soak: ready").count() as u32 >= number {
                let own = console.rsplit("libleak-guest: up").next().unwrap_or_default();
                let addresses = own.lines().filter_map(|l| l.strip_prefix("soak: address 0x"));
                let addresses = addresses.filter_map(|a| u64::from_str_radix(a.trim(), 16).ok()).collect();
                *self.shared.boot.lock().expect("no panic") = (number, Instant::now(), addresses);
                return true;
            }
            if self.guest.is_finished() || since.elapsed() > patience {
                self.troubles.push(format!("boot {number} did not come up"));
                return false;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits. Returns false if QEMU ended meanwhile.
    fn wait(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while Instant::now() < until {
            if self.guest.is_finished() {
                self.troubles.push("QEMU ended before its time".to_owned());
                return false;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        true
    }

    /// Boots until the time is over.
    fn run(&mut self, arguments: &Arguments) {
        let mut random = Random(arguments.seed);
        let mut end = None;
        for boot in 1.. {
            if !self.wait_for_boot(boot) {
                return;
            }
            let end = *end.get_or_insert_with(|| Instant::now() + arguments.run);
            println!("{:>5.1} min: boot {boot} is up", self.shared.began.elapsed().as_secs_f64() / 60.0);
            let left = end.saturating_duration_since(Instant::now());
            let until = random.between(arguments.reset_every * 4 / 5, arguments.reset_every * 6 / 5);
            if !self.wait(until.min(left)) {
                return;
            }
            if until >= left {
                return;
            }
            self.resets += 1;
            // Resets alternate between the machine and the guest.
            match boot % 2 {
                1 => self.tell("monitor", "system_reset"),
                _ => self.tell("serial", "reboot"),
            }
        }
    }

    /// The guest powers off under load.
    fn end(&mut self) {
        self.tell("serial", "end");
        let since = Instant::now();
        while !self.guest.is_finished() && since.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(200));
        }
        if !self.guest.is_finished() {
            self.troubles.push("the guest did not turn itself off; QEMU was told to quit".to_owned());
            self.tell("monitor", "quit");
        }
    }
}

fn soak<'scope>(scope: &'scope Scope<'scope, '_>, shared: &'scope Shared, arguments: &'scope Arguments) -> Outcome {
    let guest = shared.places.guest(arguments);
    let guest = scope.spawn(move || guest.boot());
    let sampler = scope.spawn(|| shared.sample());
    let client = scope.spawn(|| match arguments.plugin {
        Plugin::None => Client::new(Path::new(""), Path::new(""), 0),
        _ => shared.ask(arguments.seed),
    });
    let mut director = Director { shared, guest: &guest, troubles: Vec::new(), resets: 0 };
    director.run(arguments);
    let minutes = shared.began.elapsed().as_secs_f64() / 60.0;
    // Requests end with the guest.
    shared.over.store(true, Ordering::Relaxed);
    let (samples, client) = (sampler.join().expect("the sampler"), client.join().expect("the client"));
    director.end();
    let Director { troubles, resets, .. } = director;
    let boot = guest.join().expect("the guest's thread");
    let reports = std::fs::read_to_string(shared.places.out.join("reports")).unwrap_or_default();
    Outcome { samples, client, resets, troubles, boot, console: shared.places.console(), reports, minutes }
}

fn main() -> ExitCode {
    let arguments = match Arguments::read(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::from(2);
        }
    };
    let places = Places::new(&arguments.out).expect("folders can be made");
    println!("{}, for {:.1} minutes, seed {}", arguments.kernel, arguments.run.as_secs_f64() / 60.0, arguments.seed);
    let began = Instant::now();
    let shared = Shared { places, began, boot: Mutex::new((0, began, Vec::new())), over: AtomicBool::new(false) };
    let outcome = std::thread::scope(|scope| soak(scope, &shared, &arguments));
    let _ = std::fs::remove_dir_all(&shared.places.sockets);
    // A few hundred MiB that nobody requested.
    let _ = std::fs::remove_file(shared.places.out.join("snapshot"));
    let _ = std::fs::write(shared.places.out.join("stderr"), &outcome.boot.stderr);
    let (text, well) = verdict::verdict(&outcome, &arguments);
    print!("{text}");
    println!("see {}", shared.places.out.display());
    let _ = std::fs::write(shared.places.out.join("table"), text);
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
