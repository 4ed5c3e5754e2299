//! Memory images: ELF cores, kdump files, and flattened ones.

use detector::suppress::Suppressions;
use snapshot::Image;
use std::path::Path;

/// The bytes are a file. An image in which a kernel is found is checked.
pub fn check(data: &[u8]) {
    match Image::of_bytes(data.to_vec(), Path::new("a/file")) {
        Ok(image) => {
            if let Ok(mut outcome) = image.moment().check(None, &Suppressions::default()) {
                outcome.troubles.extend(image.missed());
                let _ = image.advice(&outcome);
            }
        }
        Err(why) => assert!(why.to_string().len() < 2000, "{why}"),
    }
}
