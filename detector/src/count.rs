//! A number of objects and their size.

use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// A number of objects, and the bytes that they have together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Count {
    /// Objects.
    pub objects: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}
