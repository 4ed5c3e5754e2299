//! The kernel's types: structs and their members, enumerators, and prototypes of functions.
//!
//! All lookups use a [`btf::Btf`]. A kernel with CONFIG_DEBUG_INFO_BTF has one in its image. The
//! debugging information (DWARF) of a vmlinux is translated into one. So both give the same
//! answers, and snapshots can hold either. The translation is kept for the next boot of the same
//! kernel.
//!
//! - [`btf`]: lookups of types by name
//! - [`dwarf`]: the translation of DWARF
//! - [`cache`]: translations, kept by build ID

pub mod btf;
pub mod cache;
pub mod dwarf;

use crate::elf::Elf;
use btf::Btf;
use dwarf::DwarfError;

/// The types in a vmlinux: those of its section `.BTF`, or else those of its debugging information.
/// `None` if it has neither. A translation is kept in the [cache].
///
/// # Errors
/// [`DwarfError`].
pub fn of_file(elf: &Elf) -> Result<Option<Btf>, DwarfError> {
    let own = elf.section(".BTF").ok().and_then(|blob| Btf::parse(&blob).ok());
    if own.is_some() || !elf.has_section(".debug_info") {
        return Ok(own);
    }
    let place = cache::folder().zip(elf.build_id());
    let kept = place.as_ref().and_then(|(folder, id)| Btf::parse(&cache::load(folder, id)?).ok());
    if kept.is_some() {
        return Ok(kept);
    }
    let blob = dwarf::read(elf)?;
    if let Some((folder, id)) = place
        && let Err(why) = cache::store(&folder, &id, &blob)
    {
        log::info!("types are not kept for the next time in {}: {why}", folder.display());
    }
    Ok(Btf::parse(&blob).ok())
}
