//! Shortens file names to those in the kernel's tree. Compilers record absolute names of the build
//! machine, or names with many `..` in them.

/// Removes `.`, `//`, and `..` behind a name.
pub fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let absolute = path.starts_with('/');
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => drop(parts.pop()),
                _ if absolute => {}
                _ => parts.push(part),
            },
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if absolute { format!("/{joined}") } else { joined }
}

/// `path` relative to `folder`, unless it is absolute.
pub fn join(folder: &str, path: &str) -> String {
    if path.starts_with('/') || folder.is_empty() { normal(path) } else { normal(&format!("{folder}/{path}")) }
}

/// The root of the kernel's tree, from the folders in a unit's line table. All code of a kernel
/// includes some header of `include/linux`.
pub fn root<'a>(folders: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let roots = folders.into_iter().filter_map(|f| f.strip_suffix("include/linux"));
    let roots = roots.filter(|r| r.is_empty() || r.ends_with('/'));
    roots.min_by_key(|r| r.len()).map(|r| r.trim_end_matches('/').to_owned())
}

/// `file` without the longest of `folders` that contains it. All arguments are normalised.
pub fn shorten<'a>(file: &'a str, folders: &[&str]) -> &'a str {
    let below = folders.iter().filter(|f| !f.is_empty()).filter_map(|f| file.strip_prefix(f)?.strip_prefix('/'));
    below.min_by_key(|rest| rest.len()).unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_normal() {
        assert_eq!(normal("/build/linux/debian/build/../../mm//slub.c"), "/build/linux/mm/slub.c");
        assert_eq!(normal("./include/linux/slab.h"), "include/linux/slab.h");
        assert_eq!(normal("../../mm/slub.c"), "../../mm/slub.c");
        assert_eq!(normal("/../a"), "/a");
        assert_eq!(join("/build", "mm/slub.c"), "/build/mm/slub.c");
        assert_eq!(join("/build", "/mm/slub.c"), "/mm/slub.c");
        assert_eq!(join("", "mm/./slub.c"), "mm/slub.c");
    }

    #[test]
    fn files_of_the_tree_are_named_from_its_root() {
        let folders = ["/src/linux-6.1/mm", "/src/linux-6.1/include/linux", "/src/linux-6.1/arch/x86/include/asm"];
        let root = root(folders).unwrap();
        assert_eq!(root, "/src/linux-6.1");
        let build = "/src/linux-6.1/debian/build";
        assert_eq!(shorten("/src/linux-6.1/mm/slub.c", &[build, &root]), "mm/slub.c");
        assert_eq!(
            shorten("/src/linux-6.1/debian/build/include/generated/bounds.h", &[build, &root]),
            "include/generated/bounds.h"
        );
        assert_eq!(shorten("/home/me/mine.c", &[build, &root]), "/home/me/mine.c");
        // A folder whose name only has the same beginning.
        assert_eq!(shorten("/src/linux-6.12/mm/slub.c", &[&root]), "/src/linux-6.12/mm/slub.c");
        assert_eq!(super::root(["include/linux"]).as_deref(), Some(""));
        assert_eq!(super::root(["/a/myinclude/linux", "/a/include/uapi/linux"]), None);
    }
}
