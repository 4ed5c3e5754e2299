//! A Linux guest seen from outside: everything here reads guest physical memory through one trait,
//! [`GuestMemory`], and needs neither the guest's help nor a file of it.
//!
//! - [`memory`]: addresses, the trait, and a memory made of byte slices for tests
//! - [`paging`], [`view`]: virtual to physical
//! - [`kallsyms`], [`symbols`], [`symbol_file`]: names and addresses
//! - [`types`]: types and function prototypes, of BTF and of DWARF
//! - [`elf`]: files of the host: vmlinux and modules
//! - [`kernel`]: the running kernel found in RAM, with all of the above
//! - [`unwind`]: frames of stacks
//! - [`pages`], [`free_pages`], [`slab`], [`slab_walk`], [`vmap`], [`percpu`], [`tasks`], [`modules`]: the kernel's own structures
//! - [`allocators`]: allocators beside the slab
//! - [`identity`]: of which kernel a vmlinux is
//! - [`config`]: options of the kernel's configuration
//! - [`nonsense`]: what of these makes no sense
//!
//! Guest memory is untrusted input: every length, count and pointer read from it is bounded, and no
//! function here panics on any content.

#![forbid(unsafe_code)]

pub mod allocators;
pub mod config;
pub mod elf;
pub mod free_pages;
pub mod identity;
pub mod kallsyms;
pub mod kernel;
pub mod memory;
pub mod modules;
pub mod nonsense;
pub mod pages;
pub mod paging;
pub mod percpu;
pub mod slab;
pub mod slab_walk;
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
