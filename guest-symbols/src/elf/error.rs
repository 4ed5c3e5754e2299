//! Errors of [`super::Elf`].

use object::{RelocationFlags, elf};

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// The file cannot be opened or read.
    #[error("cannot read it: {0}")]
    Unreadable(#[from] std::io::Error),
    /// The file is not an ELF file of an x86-64 kernel.
    #[error(transparent)]
    NoElf(ElfFlaw),
}

/// Why a file is not an ELF file of an x86-64 kernel.
#[derive(Debug, thiserror::Error)]
pub enum ElfFlaw {
    /// The headers are malformed.
    #[error(transparent)]
    Headers(#[from] object::read::Error),
    /// The file is for another machine.
    #[error("it is for machine {0:?} of ELF's list")]
    Machine(elf::Machine),
    /// The file is relocatable and not named like a module.
    #[error("it is an object file whose name does not end in .ko or .ko.debug")]
    ObjectFile,
}

/// A section that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("section {name}: {why}")]
pub struct SectionError {
    /// The name of the section.
    pub name: String,
    /// What is wrong with it.
    pub why: SectionFlaw,
}

/// Why a section cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SectionFlaw {
    /// The headers or the compressed data are malformed.
    #[error(transparent)]
    Elf(#[from] object::read::Error),
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The decompressed size, in bytes, is implausible.
    #[error("{0} bytes when decompressed")]
    TooLarge(u64),
    /// The section ends behind the file.
    #[error("it extends past the end of the file")]
    BeyondFile,
    /// The kind of a relocation is not supported.
    #[error("a relocation of unknown type, {0:?}")]
    UnknownRelocation(RelocationFlags),
    /// A relocation points behind the section. The field is its offset in bytes.
    #[error("a relocation outside of it")]
    RelocationOutside(u64),
    /// A unit of debugging information ends behind the section.
    #[error("a unit extends past its end")]
    UnitOutside,
}
