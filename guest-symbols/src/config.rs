//! Text for messages: how to set options of the kernel's configuration.

/// How to build a kernel with these options: the lines of its `.config`, and the arguments of
/// virtme-ng and of tools/testing/kunit/kunit.py (Linux 5.12 to 7.3).
pub fn how_to_set(options: &[&str]) -> String {
    let set = |before: &str| {
        let each = options.iter().map(|option| format!("{before}CONFIG_{option}=y"));
        each.collect::<Vec<_>>().join(" ")
    };
    format!(
        "build it with {} in its .config (vng --build {}; kunit.py run {})",
        set(""),
        set("--configitem "),
        set("--kconfig_add ")
    )
}

/// Options that give a vmlinux debugging information.
pub const TYPES: [&str; 2] = ["DEBUG_KERNEL", "DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT"];
/// Options that give the kernel the names of its functions and data.
pub const SYMBOLS: [&str; 3] = ["KALLSYMS", "DEBUG_KERNEL", "KALLSYMS_ALL"];

#[cfg(test)]
mod tests {
    #[test]
    fn the_very_words() {
        assert_eq!(
            super::how_to_set(&["A", "B"]),
            "build it with CONFIG_A=y CONFIG_B=y in its .config (vng --build --configitem CONFIG_A=y --configitem CONFIG_B=y; \
             kunit.py run --kconfig_add CONFIG_A=y --kconfig_add CONFIG_B=y)"
        );
    }
}
