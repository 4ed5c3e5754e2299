//! A place in the source.

/// A source location. Inlined functions come before the function that contains them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The function, as its source names it.
    pub function: Option<String>,
    /// The file, relative to the kernel's tree if it is part of it, such as `mm/slub.c`.
    pub file: String,
    /// The line. 0 if the compiler generated code that belongs to no line.
    pub line: u32,
}
