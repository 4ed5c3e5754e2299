//! The modules of each crate form layers: no module imports itself through others.
//!
//! The test reads the sources as text. A module imports another if its code names the other in a
//! path that starts with `crate`, `super` or `self`, in a `use` or elsewhere. A module does not
//! import its own submodules (`mod a;`, `a::B`). They are one unit, and the submodule sees the
//! items of the outer module. Tests inside a module (`#[cfg(test)] mod`) are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tests::program::workspace;

/// A crate's modules by their paths; the root's is empty.
type Modules = BTreeMap<Vec<String>, PathBuf>;
/// The modules that each module imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// Every folder `src` of the workspace.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the checkout").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if !path.is_dir() || name.to_string_lossy().starts_with('.') || path.join("CACHEDIR.TAG").exists() {
            continue;
        }
        if name == "src" { found.push(path) } else { sources(&path, found) }
    }
}

/// The files that crates start at.
fn roots(source: &Path) -> Vec<PathBuf> {
    let programs = std::fs::read_dir(source.join("bin")).into_iter().flatten().flatten().map(|entry| entry.path());
    let programs = programs.map(|path| if path.is_dir() { path.join("main.rs") } else { path });
    let own = ["lib.rs", "main.rs"].map(|name| source.join(name));
    own.into_iter().chain(programs).filter(|root| root.exists()).collect()
}

/// The code of a file, without comments and without its tests.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_else(|why| panic!("{}: {why}", file.display()));
    let (text, tests) = text.split_once("#[cfg(test)]\nmod ").unwrap_or((&text, ""));
    // Tests in another file. The text after the declaration is not part of them.
    let after = tests.split_once(['{', ';']).filter(|(name, _)| tests[name.len()..].starts_with(';'));
    let text = format!("{text}{}", after.map_or("", |(_, after)| after));
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .fold(String::new(), |all, line| all + line + "\n")
}

/// The names of the modules that a file declares (`mod a;`).
fn declared(code: &str) -> impl Iterator<Item = &str> {
    code.lines().filter_map(|line| {
        let line = line.trim();
        let line = line
            .strip_prefix("pub")
            .map_or(line, |rest| rest.trim_start_matches("(super)").trim_start_matches("(crate)"));
        line.trim_start().strip_prefix("mod ")?.strip_suffix(';')
    })
}

/// Finds the modules below one, whose file is `file` and whose children lie in `folder`.
fn find_modules(file: PathBuf, folder: &Path, path: Vec<String>, found: &mut Modules) {
    for name in declared(&code(&file)) {
        let beside = folder.join(format!("{name}.rs"));
        let child = if beside.exists() { beside } else { folder.join(name).join("mod.rs") };
        if child.exists() {
            find_modules(child, &folder.join(name), [&path[..], &[name.to_owned()]].concat(), found);
        }
    }
    found.insert(path, file);
}

/// Words, and the signs that paths and trees of imports are made of.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let len = match first {
            _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            ':' if rest.starts_with("::") => 2,
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at(len);
        if !token.trim().is_empty() {
            tokens.push(token);
        }
        rest = after;
    }
    tokens
}

/// Finds the paths that begin at the start of `tokens`, with `before` in front of each. Returns
/// their number of tokens.
fn paths(tokens: &[&str], before: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    let mut at = 0;
    loop {
        match tokens.get(at) {
            Some(&"{") if at > 0 || !before.is_empty() => {
                at += 1;
                while tokens.get(at).is_some_and(|token| *token != "}") {
                    at += match tokens[at] {
                        "," => 1,
                        _ => paths(&tokens[at..], &path, found).max(1),
                    };
                }
                return at + 1;
            }
            Some(word) if word.chars().all(|c| c.is_alphanumeric() || c == '_') => path.push((*word).to_owned()),
            _ => {}
        }
        at += 1;
        if tokens.get(at) != Some(&"::") {
            found.push(path);
            // `as` gives another name to the same thing.
            return at + if tokens.get(at) == Some(&"as") { 2 } else { 0 };
        }
        at += 1;
    }
}

/// The module that a path names, or the module of the item that it names. `None` if there is no
/// such module here.
fn resolve<'a>(modules: &'a Modules, here: &[String], path: &[String]) -> Option<&'a Vec<String>> {
    let mut names = path.iter().peekable();
    let mut module = match names.peek()?.as_str() {
        "crate" => Vec::new(),
        _ => here.to_vec(),
    };
    while let Some(name) = names.next_if(|name| matches!(name.as_str(), "crate" | "self" | "super")) {
        if name == "super" {
            module.pop();
        }
    }
    for name in names {
        module.push(name.clone());
        if !modules.contains_key(&module) {
            module.pop();
            break;
        }
    }
    modules.get_key_value(&module).map(|(module, _)| module)
}

/// What each module of a crate imports, by the names of their files.
fn imports(root: &Path) -> Imports {
    let mut modules = Modules::new();
    find_modules(root.to_owned(), root.parent().expect("a folder"), Vec::new(), &mut modules);
    let name = |file: &Path| file.strip_prefix(workspace()).unwrap_or(file).display().to_string();
    let mut imports = Imports::new();
    for (here, file) in &modules {
        let code = code(file);
        let tokens = tokens(&code);
        let mut found = Vec::new();
        for at in 0..tokens.len() {
            let starts = tokens.get(at + 1) == Some(&"::") && (at == 0 || tokens[at - 1] != "::");
            if starts && matches!(tokens[at], "crate" | "super" | "self") {
                paths(&tokens[at..], &[], &mut found);
            }
        }
        let to = found.iter().filter_map(|path| resolve(&modules, here, path)).filter(|to| *to != here);
        imports.insert(name(file), to.map(|to| name(&modules[to])).collect());
    }
    imports
}

/// Everything that a module imports, directly or through others.
fn reachable<'a>(imports: &'a Imports, from: &'a str) -> BTreeSet<&'a str> {
    let (mut found, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(module) = next.pop() {
        next.extend(imports.get(module).into_iter().flatten().map(String::as_str).filter(|to| found.insert(*to)));
    }
    found
}

/// Groups of modules in which each module imports each other, directly or through others.
fn circles(imports: &Imports) -> BTreeSet<Vec<&str>> {
    let all: BTreeMap<&str, BTreeSet<&str>> =
        imports.keys().map(|module| (module.as_str(), reachable(imports, module))).collect();
    let circle = |module: &&str| {
        all.iter().filter(|(to, back)| all[module].contains(*to) && back.contains(*module)).map(|(to, _)| *to).collect()
    };
    all.keys().filter(|module| all[*module].contains(*module)).map(circle).collect()
}

#[test]
fn modules_form_layers() {
    let mut folders = Vec::new();
    sources(&workspace(), &mut folders);
    let crates: Vec<Imports> = folders.iter().flat_map(|source| roots(source)).map(|root| imports(&root)).collect();
    let modules: usize = crates.iter().map(BTreeMap::len).sum();
    let arrows: usize = crates.iter().flat_map(BTreeMap::values).map(BTreeSet::len).sum();
    assert!(
        crates.len() > 10 && modules > 150 && arrows > 300,
        "{} crates, {modules} modules, {arrows} imports",
        crates.len()
    );
    let mut found = String::new();
    for imports in &crates {
        for circle in circles(imports) {
            found += &format!("a circle of {} modules:\n", circle.len());
            for from in &circle {
                let to: Vec<_> = imports[*from].iter().filter(|to| circle.contains(&to.as_str())).collect();
                found += &format!("  {from} imports {to:?}\n");
            }
        }
    }
    assert!(found.is_empty(), "{found}");
}

#[test]
fn paths_are_read_as_rust_reads_them() {
    let read = |code: &str| {
        let mut found = Vec::new();
        paths(&tokens(code), &[], &mut found);
        found.into_iter().map(|path| path.join("::")).collect::<Vec<_>>()
    };
    assert_eq!(read("crate::a::b(c)"), ["crate::a::b"]);
    assert_eq!(read("super::{self, a::{B as C, d}, e::*};"), ["super::self", "super::a::B", "super::a::d", "super::e"]);
    let modules: Modules = ["", "a", "a::b", "c"]
        .into_iter()
        .map(|path| (path.split_terminator("::").map(str::to_owned).collect(), PathBuf::new()))
        .collect();
    let resolved = |here: &str, path: &str| {
        let split = |path: &str| path.split_terminator("::").map(str::to_owned).collect::<Vec<_>>();
        resolve(&modules, &split(here), &split(path)).map(|to| to.join("::"))
    };
    assert_eq!(resolved("a::b", "super::super::c::X").as_deref(), Some("c"));
    assert_eq!(resolved("a::b", "super::X").as_deref(), Some("a"));
    assert_eq!(resolved("a", "b::X").as_deref(), Some("a::b"));
    assert_eq!(resolved("c", "crate::a::b").as_deref(), Some("a::b"));
    assert_eq!(resolved("c", "crate::X").as_deref(), Some(""));
}

#[test]
fn circles_are_found() {
    let imports = |arrows: &[(&str, &[&str])]| -> Imports {
        arrows.iter().map(|(from, to)| ((*from).to_owned(), to.iter().map(|to| (*to).to_owned()).collect())).collect()
    };
    assert!(circles(&imports(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])).is_empty());
    let two = imports(&[("a", &["b"]), ("b", &["c"]), ("c", &["a", "d"]), ("d", &["e"]), ("e", &["d"])]);
    assert_eq!(circles(&two), BTreeSet::from([vec!["a", "b", "c"], vec!["d", "e"]]));
}
