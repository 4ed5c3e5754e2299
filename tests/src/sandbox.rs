//! A folder in which commands of the pages run exactly as written.

use crate::page::Page;
use crate::program::{Finished, Program, leak, scratch, workspace};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

/// The kernel whose image is `bzImage` there.
const KERNEL: &str = "bookworm-backports";

/// Commands that another script runs: a part of the command, the script, and what it must contain.
const ELSEWHERE: [(&str, &str, &[&str]); 4] = [
    // The plugin and the program are built before any test.
    ("cargo build --release", "scripts/test", &["cargo build --release --package libleak --package cli"]),
    // These install a package of Python's, and build a kernel.
    ("vng --build", "scripts/lib/vng.sh", &["cd \"$tree\" && PATH=$path:$PATH vng --build"]),
    ("vng -r", "scripts/lib/recipes.sh", &["\"$leak\" run --report", "vng ", " -r ", "--user root", "--exec"]),
    // This one builds a kernel, which takes minutes. The script runs its parts, build and exec.
    ("kunit.py run", "scripts/lib/recipes.sh", &["\"$leak\" run", "./tools/testing/kunit/kunit.py exec --arch=x86_64"]),
];

/// The commands of the shell block of a page that contains `part`, without those of [`ELSEWHERE`].
///
/// If not exactly one block has the part, or if a script of [`ELSEWHERE`] does not run its command.
pub fn block(page: &str, part: &str) -> Vec<String> {
    let blocks: Vec<_> = Page::read(page).shell_blocks().into_iter().filter(|b| b.text.contains(part)).collect();
    assert_eq!(blocks.len(), 1, "{page}: shell blocks with {part}");
    let mut commands = blocks[0].commands();
    commands.retain(|command| {
        let elsewhere = ELSEWHERE.iter().find(|(part, ..)| command.contains(part));
        if let Some((_, file, needles)) = elsewhere {
            let text = std::fs::read_to_string(workspace().join(file)).unwrap_or_else(|why| panic!("{file}: {why}"));
            for needle in *needles {
                assert!(text.contains(needle), "{page}: {command}: no {needle} in {file}");
            }
        }
        elsewhere.is_none()
    });
    commands
}

/// The folder: the checkout by links, and the files that the pages' commands name.
#[derive(Debug)]
pub struct Sandbox {
    folder: PathBuf,
}

impl Sandbox {
    /// A folder of that name below `target/guests`, with links to everything in the checkout.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new(test: &str) -> Sandbox {
        let folder = scratch(test);
        for entry in std::fs::read_dir(workspace()).expect("the checkout").flatten() {
            if !["target", ".git"].iter().any(|name| entry.file_name() == *name) {
                symlink(entry.path(), folder.join(entry.file_name())).expect("a link");
            }
        }
        // Cargo may build elsewhere.
        let release = leak().parent().expect("a program lies in a folder").to_owned();
        std::fs::create_dir(folder.join("target")).expect("a folder");
        symlink(release, folder.join("target/release")).expect("a link");
        let sandbox = Sandbox { folder };
        sandbox.write("known-leaks", "leak:no_such_function\n");
        sandbox
    }

    /// The same with `bzImage` and `initrd.gz`. The guest has the module `leaky`, and the script
    /// `init` as its first process.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn with_guest(test: &str, init: &str) -> Sandbox {
        let sandbox = Sandbox::new(test);
        let [image, initramfs] = ["bzImage", "initrd.gz"].map(|name| sandbox.path(name).display().to_string());
        // A script in place of QEMU. It keeps the files to boot.
        let taker = format!(
            "#!/bin/sh\nwhile [ $# -gt 0 ]; do\n    case $1 in\n    -kernel) cp \"$2\" {image} ;;\n    \
             -initrd) cp \"$2\" {initramfs} ;;\n    esac\n    shift\ndone\n"
        );
        let done = Program::new(workspace().join("scripts/boot"))
            .args(&format!("{KERNEL} --module leaky --qemu"))
            .arg(sandbox.write("take", &taker))
            .arg("--file")
            .arg(format!("{}:/init", sandbox.write("init", init).display()))
            .limit(900)
            .run();
        assert_eq!(done.status, Some(0), "{}", done.stderr);
        sandbox
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file that may be run.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.path(name);
        std::fs::write(&file, text).expect("a file");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("a mode");
        file
    }

    /// The text of a file.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|why| panic!("{}: {why}", self.path(name).display()))
    }

    /// Runs commands there with a shell, up to the first that fails, with `leak` on PATH.
    pub fn run(&self, commands: &[String]) -> Finished {
        let script =
            format!("cd {}\nexport PATH=$PWD/target/release:$PATH\n{}\n", self.folder.display(), commands.join("\n"));
        Program::new("bash").arg("-euc").arg(script).limit(1200).run()
    }
}
