//! The pages are right: links lead to files and headings, and every option, command and script in
//! them exists. `page_commands.rs` runs the commands.

use std::collections::{BTreeMap, BTreeSet};
use tests::page::Page;
use tests::program::{leak, workspace};
use tests::{Program, program};

/// Lines of README.md, at most: a newcomer reads it in two minutes.
const README_LINES: usize = 120;
/// Columns of a line that is no part of a table.
const COLUMNS: usize = 100;
/// Keys of `KEY=VALUE` in the pages that belong to QEMU, to the kernel or to the environment.
const OTHERS_OPTIONS: [&str; 8] =
    ["accel", "dump", "memory-backend", "one-insn-per-tb", "sleep", "stack", "thread", "LIBLEAK_MANY"];

/// Fails with the list, unless it is empty.
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_readme_is_short_and_no_line_is_long() {
    let lines = Page::read("README.md").text.lines().count();
    assert!(lines <= README_LINES, "README.md has {lines} lines");
    let mut wrong = Vec::new();
    for page in Page::all() {
        let long = page.prose().into_iter().filter(|line| !line.starts_with('|') && line.chars().count() > COLUMNS);
        wrong.extend(long.map(|line| format!("{}: more than {COLUMNS} columns: {line}", page.name)));
    }
    assert_none(&wrong);
}

#[test]
fn links_lead_to_files_and_headings() {
    let pages = Page::all();
    assert!(pages.len() >= 14, "{} pages", pages.len());
    let anchors: BTreeMap<_, _> = pages.iter().map(|page| (page.path(), page.anchors())).collect();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in &pages {
        for link in page.links() {
            seen += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let folder = page.path().parent().expect("a page lies in a folder").to_owned();
            let path = if file.is_empty() { Ok(page.path()) } else { folder.join(file).canonicalize() };
            match path {
                Err(why) => wrong.push(format!("{}: {link}: {why}", page.name)),
                Ok(path) if !anchor.is_empty() && !anchors.get(&path).is_some_and(|all| all.contains(anchor)) => {
                    wrong.push(format!("{}: {link}: no such heading", page.name));
                }
                Ok(_) => {}
            }
        }
    }
    assert!(seen > 50, "{seen} links");
    assert_none(&wrong);
}

/// Every page can be reached from README.md by links.
#[test]
fn no_page_is_lost() {
    let (mut reached, mut todo) = (BTreeSet::new(), vec![workspace().join("README.md")]);
    while let Some(path) = todo.pop() {
        if !reached.insert(path.clone()) || path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let name = path.strip_prefix(workspace()).expect("a page of the checkout").to_str().expect("text");
        let folder = path.parent().expect("a folder").to_owned();
        let files = Page::read(name)
            .links()
            .into_iter()
            .filter_map(|link| folder.join(link.split('#').next()?).canonicalize().ok());
        todo.extend(files);
    }
    let lost = Page::all().into_iter().filter(|page| !reached.contains(&page.path())).map(|page| page.name);
    assert_none(&lost.collect::<Vec<_>>());
}

/// The options as the plugin's help has them, such as `report=PATH`.
fn options() -> BTreeSet<String> {
    let help = Program::new(program::qemu("installed"))
        .args("-machine none -display none -plugin")
        .arg(program::plugin_argument(&["help".to_owned()]))
        .run();
    let rows = help.stderr.lines().filter_map(|line| line.strip_prefix("libleak:   ")?.split_whitespace().next());
    let options: BTreeSet<String> = rows.map(str::to_owned).collect();
    assert!(options.len() > 20, "{}", help.stderr);
    options
}

fn keys(options: &BTreeSet<String>) -> BTreeSet<&str> {
    options.iter().map(|option| option.split('=').next().expect("a key")).collect()
}

#[test]
fn the_table_of_options_is_the_plugins() {
    let page = Page::read("docs/usage.md");
    let section = page.text.split("\n## ").find(|part| part.starts_with("Options\n")).expect("a section of options");
    let cells =
        section.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.replace("\\|", "|")));
    assert_eq!(cells.collect::<BTreeSet<_>>(), options());
}

#[test]
fn options_in_the_pages_are_the_plugins() {
    let options = options();
    let keys = keys(&options);
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in Page::all() {
        for command in page.commands() {
            let after_plugin = command.split("libleak.so,").skip(1).flat_map(|rest| {
                rest.split_whitespace().next().unwrap_or_default().split(',').map(str::to_owned).collect::<Vec<_>>()
            });
            let alone = Some(command.clone()).filter(|word| {
                let key = word.split('=').next().expect("a key");
                word.contains('=') && key.bytes().all(|c| c.is_ascii_lowercase() || c == b'-') && !key.starts_with('-')
            });
            for option in after_plugin.chain(alone) {
                let key = option.split('=').next().expect("a key");
                seen += 1;
                if !keys.contains(key) && !OTHERS_OPTIONS.contains(&key) && !["KEY", "..."].contains(&key) {
                    wrong.push(format!("{}: no option {key}: {command}", page.name));
                }
            }
        }
    }
    assert!(seen > 50, "{seen} options");
    assert_none(&wrong);
}

fn help(words: &[&str]) -> String {
    let done = words.iter().fold(Program::new(leak()), |program, word| program.arg(word)).arg("--help").run();
    assert_eq!(done.status, Some(0), "leak {words:?} --help: {}", done.stderr);
    done.stdout
}

/// Subcommands of `leak`, each with its flags.
fn subcommands() -> BTreeMap<String, BTreeSet<String>> {
    let text = help(&[]);
    let list = text.split("Commands:\n").nth(1).expect("a list").split("\n\n").next().expect("its end");
    let names = list.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names
        .map(|name| {
            let text = help(&[name]);
            // Examples below the options may name other programs' flags.
            let own = text.split("\nExamples:").next().expect("the part before them");
            let words =
                own.split_whitespace().map(|word| word.split(['=', ',', ']', '.', ')']).next().expect("a word"));
            (
                name.to_owned(),
                words.filter(|word| word.starts_with("--") && word.len() > 2).map(str::to_owned).collect(),
            )
        })
        .collect()
}

/// The words after the program `leak` in a command, up to the command that it runs.
fn leak_words(command: &str) -> Option<Vec<&str>> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "leak" || word.ends_with("/leak"))?;
    let end = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    Some(words.get(at + 1..end.max(at + 1))?.to_vec()).filter(|rest| !rest.is_empty())
}

#[test]
fn leak_commands_exist_and_all_are_documented() {
    let subcommands = subcommands();
    assert!(subcommands.len() > 15, "{subcommands:?}");
    let (mut wrong, mut told) = (Vec::new(), BTreeMap::<&str, BTreeSet<&str>>::new());
    let pages = Page::all();
    let commands: Vec<(&Page, String)> =
        pages.iter().flat_map(|page| page.commands().into_iter().map(move |command| (page, command))).collect();
    for (page, command) in &commands {
        let Some(words) = leak_words(command) else { continue };
        let Some((name, flags)) = subcommands.get_key_value(words[0]) else {
            wrong.push(format!("{}: no command leak {}: {command}", page.name, words[0]));
            continue;
        };
        let told = told.entry(name.as_str()).or_default();
        for word in words.iter().filter(|word| word.starts_with("--")) {
            match flags.get(*word) {
                Some(flag) => _ = told.insert(flag.as_str()),
                None => wrong.push(format!("{}: leak {name} has no {word}: {command}", page.name)),
            }
        }
    }
    wrong.extend(
        subcommands
            .keys()
            .filter(|name| !told.contains_key(name.as_str()))
            .map(|name| format!("leak {name} is in no page")),
    );
    // Tables have flags apart from their commands.
    let scripts = script_texts();
    for (page, command) in &commands {
        let flag = command.split_whitespace().next().filter(|word| word.starts_with("--") && word.len() > 2);
        if let Some(flag) = flag.filter(|flag| !subcommands.values().any(|flags| flags.contains(*flag)))
            && !scripts.contains(flag)
        {
            wrong.push(format!("{}: no command and no script has {flag}", page.name));
        }
    }
    for (name, flags) in &subcommands {
        for flag in flags.iter().filter(|flag| *flag != "--help") {
            let is_told = |command: &str| command.split_whitespace().any(|word| word == flag);
            if !commands.iter().any(|(_, command)| is_told(command)) {
                wrong.push(format!("{flag} of leak {name} is in no page"));
            }
        }
    }
    assert_none(&wrong);
}

/// The text of all scripts.
fn script_texts() -> String {
    ["scripts", "scripts/lib"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(workspace().join(folder)).expect("a folder of scripts").flatten())
        .filter_map(|entry| std::fs::read_to_string(entry.path()).ok())
        .collect()
}

/// Packages, benchmarks and test files that commands of cargo and `scripts/test` name are there.
#[test]
fn packages_benchmarks_and_test_files_exist() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in Page::all() {
        for command in page.commands() {
            let words: Vec<&str> = command.split_whitespace().collect();
            for pair in words.windows(2) {
                let exists = match (words[0], pair[0]) {
                    ("cargo", "-p" | "--package") => {
                        // The plugin's package has the name of its library.
                        let folder = if pair[1] == "libleak" { "plugin" } else { pair[1] };
                        workspace().join(folder).join("Cargo.toml").exists()
                    }
                    ("cargo", "--bench") => {
                        let package = words.iter().position(|word| *word == "-p").and_then(|at| words.get(at + 1));
                        let file = format!("{}/benches/{}.rs", package.copied().unwrap_or("."), pair[1]);
                        workspace().join(file).exists()
                    }
                    ("./scripts/test" | "scripts/test", "--test") => {
                        workspace().join(format!("tests/tests/{}.rs", pair[1])).exists()
                    }
                    _ => continue,
                };
                seen += 1;
                if !exists {
                    wrong.push(format!("{}: there is no {}: {command}", page.name, pair[1]));
                }
            }
        }
    }
    assert!(seen > 10, "{seen} of them");
    assert_none(&wrong);
}

/// The script of this project that a command starts, and the words after it up to a lone `--`.
fn script_words(command: &str) -> Option<(&str, Vec<&str>)> {
    let mut words = command.split_whitespace().map(|word| word.trim_start_matches("./"));
    let script = words.next().filter(|word| word.starts_with("scripts/"))?;
    Some((script, words.take_while(|word| *word != "--").collect()))
}

#[test]
fn scripts_are_there_and_know_their_options() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in Page::all() {
        for command in page.commands() {
            let Some((script, words)) = script_words(&command) else { continue };
            seen += 1;
            let path = workspace().join(script);
            if !path.exists() {
                wrong.push(format!("{}: there is no {script}", page.name));
                continue;
            }
            let mut text = std::fs::read_to_string(&path).unwrap_or_default();
            // scripts/boot passes unknown options on to its library.
            if script == "scripts/boot" {
                text += &std::fs::read_to_string(workspace().join("scripts/lib/boot.sh")).expect("its library");
            }
            for flag in words.iter().filter(|word| word.starts_with("--")).filter(|flag| !text.contains(**flag)) {
                wrong.push(format!("{}: {script} has no {flag}: {command}", page.name));
            }
        }
    }
    assert!(seen > 30, "{seen} scripts");
    assert_none(&wrong);
}

/// Files of the checkout that are named in code are there.
#[test]
fn files_in_the_pages_are_there() {
    let top = ["checker/", "cli/", "detector/", "docs/", "guest-symbols/", "lines/", "plugin/", "snapshot/", "tests/"];
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in Page::all() {
        let words = page
            .commands()
            .into_iter()
            .flat_map(|command| command.split([' ', ':']).map(str::to_owned).collect::<Vec<_>>());
        for word in words.filter(|word| top.iter().any(|folder| word.starts_with(folder))) {
            seen += 1;
            if !workspace().join(&word).exists() {
                wrong.push(format!("{}: there is no {word}", page.name));
            }
        }
    }
    assert!(seen > 20, "{seen} files");
    assert_none(&wrong);
}
