//! Guesses the type of an object from names.

use crate::names::Names;
use detector::report::{Frame, Leak};
use guest_symbols::Kernel;

/// The type of an object as `struct NAME`, if a name shows it. That is the name of its own slab
/// cache. Otherwise it is the first function on its stack that returns a pointer to a struct of the
/// right size.
pub(crate) fn guess(names: Names<'_>, leak: &Leak, frames: &[Frame]) -> Option<String> {
    by_cache(names.kernel, leak)
        .or_else(|| by_prototype(names.kernel, leak, frames))
        .map(|name| format!("struct {name}"))
}

/// A cache is named after its struct (KMEM_CACHE(), include/linux/slab.h), often with a suffix.
fn by_cache(kernel: &Kernel, leak: &Leak) -> Option<String> {
    let (cache, btf) = (leak.cache.as_deref()?, kernel.btf.as_ref()?);
    let stem = cache.strip_suffix("_cache").or_else(|| cache.strip_suffix("_cachep"));
    let names = [Some(cache), stem];
    let fits =
        |name: &&str| btf.size_of(name).is_some_and(|size| size <= leak.size && leak.size < size + size / 4 + 64);
    names.into_iter().flatten().find(fits).map(str::to_owned)
}

fn by_prototype(kernel: &Kernel, leak: &Leak, frames: &[Frame]) -> Option<String> {
    let btf = kernel.btf.as_ref()?;
    // Frame 0 is the allocator, which returns void *.
    frames.iter().skip(1).filter_map(|f| f.function.as_ref()).filter(|f| f.module.is_none()).take(3).find_map(|f| {
        let (name, size) = btf.returns_pointer_to(&f.name)?;
        // The size class that kmalloc() uses for it (kmalloc_index(), include/linux/slab.h).
        let class = match size {
            0 => return None,
            65..=96 => 96,
            129..=192 => 192,
            _ => size.next_power_of_two().max(8),
        };
        (leak.size == class || leak.size == size).then_some(name)
    })
}
