//! The kernel's types: structs and their members, enumerators, and prototypes of functions.
//!
//! Everything that asks for a type asks a [`btf::Btf`]. A kernel with CONFIG_DEBUG_INFO_BTF carries
//! one in its image. The debugging information (DWARF) of a vmlinux is translated into one, so that
//! both give the same answers, snapshots hold either, and a translation can be kept for the next
//! boot of the same kernel.
//!
//! - [`btf`]: the answers
//! - [`dwarf`]: the translation
//! - [`cache`]: translations kept by build id

pub mod btf;
pub mod cache;
pub mod dwarf;

use crate::elf::Elf;
use btf::Btf;
use dwarf::DwarfError;

/// The types that a vmlinux has: those of its section `.BTF`, else those of its debugging
/// information. `None` where it has neither. A translation is kept in the user's [cache] for the
/// next time.
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
