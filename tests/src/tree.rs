//! Folders with the layout of a kernel's tree after its build.

use crate::program::{Program, cache, module_debug_folder, scratch, workspace};
use crate::{Boot, Guest};
use std::fs;
use std::path::{Path, PathBuf};

/// Builds a kernel unless the cache has it.
///
/// # Panics
/// If it cannot be built.
pub fn build(kernel: &str) {
    let script = format!(
        ". '{0}/scripts/lib/common.sh'; . '{0}/scripts/lib/kernels.sh'; guest_kernel {kernel}",
        workspace().display()
    );
    let done = Program::new("bash").arg("-c").arg(script).limit(7200).run();
    assert_eq!(done.status, Some(0), "{}", done.stderr);
}

/// Makes a tree with the changed image of a kernel, and without a vmlinux.
///
/// # Panics
/// If files cannot be read or written.
pub fn tree(name: &str, kernel: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> PathBuf {
    build(kernel);
    let folder = scratch(name);
    let boot = folder.join("arch/x86/boot");
    fs::create_dir_all(&boot).expect("a folder");
    let image = fs::read(cache().join("kernels").join(kernel).join("vmlinuz")).expect("the image");
    fs::write(boot.join("bzImage"), change(image)).expect("the image");
    folder
}

/// The vmlinux of a kernel, with debugging information.
pub fn vmlinux_of(kernel: &str) -> PathBuf {
    cache().join("kernels").join(kernel).join("debug/vmlinux")
}

/// Copies a kernel's vmlinux into a tree, changed by objcopy.
///
/// # Panics
/// If objcopy fails.
pub fn add_vmlinux(folder: &Path, kernel: &str, how: &str) {
    let done = Program::new("objcopy").args(how).arg(vmlinux_of(kernel)).arg(folder.join("vmlinux")).run();
    assert_eq!(done.status, Some(0), "{}", done.stderr);
}

/// Copies the module `leaky` with its debugging information into a tree, as a build leaves it.
///
/// # Panics
/// If no guest of the kernel had the module before.
pub fn add_module(folder: &Path, kernel: &str) {
    let file = module_debug_folder(kernel).join("leaky.ko");
    fs::copy(file, folder.join("leaky.ko")).expect("the module");
}

/// A guest that is started from a tree, and that loads the module `leaky`.
///
/// # Panics
/// If the folder's name is not text.
pub fn guest(test: &str, kernel: &str, folder: &Path) -> Guest {
    Guest::new(test, kernel)
        .module_debug("leaky")
        .qemu_arg("-kernel")
        .qemu_arg(folder.join("arch/x86/boot/bzImage").to_str().expect("text"))
        .run(&["insmod:leaky", "workload"])
}

/// Asserts that the report has source lines of the kernel and of the module.
///
/// # Panics
/// If it has none.
pub fn assert_lines(boot: &Boot) {
    assert!(boot.stderr.contains(" leaky.c:"), "no line of the module; {}", boot.hint());
    assert!(boot.stderr.contains("init/main.c:"), "no line of the kernel; {}", boot.hint());
}

/// Asserts that the first message has all these words, and that there is no report.
///
/// # Panics
/// If one is missing, or if there is a report.
pub fn assert_refused(boot: &Boot, words: &[&str]) {
    let said = boot.messages();
    for word in words {
        assert!(said.first().is_some_and(|line| line.contains(word)), "no {word:?} in {said:#?}");
    }
    assert!(!boot.stderr.contains("unreferenced"), "{}", boot.stderr);
}
