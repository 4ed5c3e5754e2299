//! A Linux guest seen from outside.
//!
//! This crate reads guest physical memory through one trait, [`GuestMemory`]. It needs no help from
//! the guest. A vmlinux is only needed for what the kernel's image lacks.
//!
//! - [`memory`]: addresses, the trait, and a memory made of byte slices for tests
//! - [`paging`], [`view`]: virtual to physical addresses
//! - [`kallsyms`], [`symbols`], [`symbol_file`]: names and addresses
//! - [`types`]: types and function prototypes, of BTF and of DWARF
//! - [`elf`]: files of the host: vmlinux and modules
//! - [`kernel`]: the running kernel found in RAM, with all of the above
//! - [`unwind`]: frames of stacks
//! - [`code`]: the code of the kernel and its modules, for unwinding
//! - [`pages`], [`free_pages`], [`slab`], [`slab_walk`], [`sheaves`], [`slab_tracks`], [`stack_depot`], [`vmap`], [`percpu`], [`tasks`],
//!   [`modules`]: the kernel's own structures
//! - [`allocators`]: allocators besides the slab
//! - [`kasan`]: structures of the kernel's address sanitizer
//! - [`identity`]: whether a vmlinux belongs to the running kernel
//! - [`config`]: options of the kernel's configuration
//! - [`corruption`]: corruption found in these structures
//!
//! Guest memory is untrusted input. Every length, count and pointer read from it is bounded. No
//! function here panics on any content.

#![forbid(unsafe_code)]

pub mod allocators;
pub mod code;
pub mod config;
pub mod corruption;
pub mod elf;
pub mod free_pages;
pub mod identity;
mod image_pages;
pub mod kallsyms;
pub mod kasan;
pub mod kernel;
pub mod memory;
pub mod modules;
pub mod pages;
pub mod paging;
pub mod percpu;
pub mod sheaves;
pub mod slab;
pub mod slab_tracks;
pub mod slab_walk;
pub mod stack_depot;
pub mod symbol_file;
pub mod symbols;
pub mod tasks;
pub mod types;
pub mod unwind;
pub mod view;
pub mod vmap;

pub use kernel::Kernel;
pub use memory::{GuestMemory, MemoryError, PhysAddr, VirtAddr};
pub use types::btf;
