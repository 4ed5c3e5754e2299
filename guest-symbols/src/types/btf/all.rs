//! Describes all definitions as text, to compare the types of two sources.

use super::{Btf, MAX_DEPTH, Type, kind};
use crate::memory::u32_at;
use crate::symbols::readable;
use std::fmt::Write;

impl Btf {
    /// Every named struct, union, enum and function, such as `struct page`, with a description.
    /// Names that are defined several times appear several times. For tests only, because the text
    /// for a kernel has about 10 MB.
    pub fn definitions(&self) -> impl Iterator<Item = (String, String)> {
        self.types.iter().filter(|ty| ty.name != 0).filter_map(|ty| {
            let what = match ty.kind() {
                kind::STRUCT => "struct",
                kind::UNION => "union",
                kind::ENUM | kind::ENUM64 => "enum",
                kind::FUNC => "function",
                _ => return None,
            };
            let mut words = String::new();
            match ty.kind() {
                kind::FUNC => self.describe_function(ty, &mut words)?,
                kind::ENUM | kind::ENUM64 => self.describe_enum(ty, &mut words)?,
                _ => self.describe_struct(ty, 0, &mut words)?,
            }
            Some((format!("{what} {}", readable(self.name(ty.name))), words))
        })
    }

    fn describe_struct(&self, ty: &Type, depth: usize, words: &mut String) -> Option<()> {
        write!(words, "{} {{", ty.size_or_type).ok()?;
        for (name, member) in self.members(ty) {
            let bits = member.bits.map_or(String::new(), |bits| format!(":{bits}"));
            write!(words, " {}@{}{bits} ", readable(self.name(name)), member.bit_offset).ok()?;
            self.describe_type(member.type_id, depth + 1, words)?;
            words.push(';');
        }
        words.push('}');
        Some(())
    }

    fn describe_type(&self, id: u32, depth: usize, words: &mut String) -> Option<()> {
        let Some(ty) = self.strip(id).filter(|_| depth <= MAX_DEPTH) else { return Some(()) };
        let name = readable(self.name(ty.name));
        match ty.kind() {
            kind::PTR => words.push('*'),
            kind::INT => write!(words, "int{}", ty.size_or_type).ok()?,
            kind::FLOAT => write!(words, "float{}", ty.size_or_type).ok()?,
            kind::ARRAY => {
                write!(words, "[{}]", self.array_len(id)?).ok()?;
                self.describe_type(u32_at(&self.data, ty.at as usize + 12)?, depth + 1, words)?;
            }
            kind::STRUCT | kind::UNION if ty.name == 0 => self.describe_struct(ty, depth, words)?,
            kind::STRUCT => write!(words, "struct {name}").ok()?,
            kind::UNION => write!(words, "union {name}").ok()?,
            kind::ENUM | kind::ENUM64 => write!(words, "enum{} {name}", ty.size_or_type).ok()?,
            _ => words.push_str("void"),
        }
        Some(())
    }

    fn describe_enum(&self, ty: &Type, words: &mut String) -> Option<()> {
        write!(words, "{} {{", ty.size_or_type).ok()?;
        let step = if ty.kind() == kind::ENUM { 8 } else { 12 };
        for i in 0..ty.vlen() {
            let word = |n: usize| u32_at(&self.data, ty.at as usize + 12 + step * i + n);
            let high = if step == 8 { 0 } else { u64::from(word(8)?) << 32 };
            write!(words, " {}={:#x};", readable(self.name(word(0)?)), high | u64::from(word(4)?)).ok()?;
        }
        words.push('}');
        Some(())
    }

    fn describe_function(&self, ty: &Type, words: &mut String) -> Option<()> {
        let proto = self.types.get(ty.size_or_type as usize).filter(|t| t.kind() == kind::FUNC_PROTO)?;
        // The target of a pointer matters if it is a struct.
        let pointer = self.strip(proto.size_or_type).filter(|t| t.kind() == kind::PTR);
        let target = pointer.and_then(|t| self.strip(t.size_or_type)).filter(|t| t.kind() == kind::STRUCT);
        self.describe_type(proto.size_or_type, 0, words)?;
        write!(words, "{}(", target.map_or(String::new(), |t| readable(self.name(t.name)))).ok()?;
        for i in 0..proto.vlen() {
            let name = u32_at(&self.data, proto.at as usize + 12 + 8 * i)?;
            write!(words, "{},", readable(self.name(name))).ok()?;
        }
        words.push(')');
        Some(())
    }
}
