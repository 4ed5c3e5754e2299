//! The plugin's options, as QEMU passes them.

// See control.rs.
#[path = "../../../plugin/src/options/mod.rs"]
pub mod plugin;

use plugin::{OptionError, Options};

/// One option per line.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let words: Vec<&str> = text.split('\n').collect();
    match Options::parse(words.iter().copied()) {
        Ok(options) => {
            assert!((1..=64).contains(&options.frames));
            assert!(options.threads.is_none_or(|n| n.get() <= 64));
            assert!(options.scan.is_none_or(|every| every.as_secs() > 0));
            let files = options.reports.len() + options.suppress.len() + options.debug.len();
            assert!(files <= words.len());
            // Equal words give equal options.
            assert_eq!(Options::parse(words.iter().copied()), Ok(options));
        }
        Err(OptionError::Help(text)) => assert!(text.contains("-plugin") && text.len() < 10_000),
        Err(why) => assert!(why.to_string().len() < 2000 + text.len()),
    }
}
