//! The project's pages, in Markdown: their links, headings, code and commands.

use crate::program::workspace;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A page.
#[derive(Debug, Clone)]
pub struct Page {
    /// Its path from the checkout, as `docs/usage.md`.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// A block of code between two lines of three backticks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The word after the opening backticks, as `sh`.
    pub language: String,
    /// Its lines.
    pub text: String,
}

impl Page {
    /// A page by its path from the checkout.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn read(name: &str) -> Page {
        let text = std::fs::read_to_string(workspace().join(name)).unwrap_or_else(|why| panic!("{name}: {why}"));
        Page { name: name.to_owned(), text }
    }

    /// All of them: those of the checkout itself, and those below `docs`.
    ///
    /// # Panics
    /// If a folder cannot be read.
    pub fn all() -> Vec<Page> {
        let mut names = BTreeSet::new();
        for folder in ["", "docs", "docs/design"] {
            for entry in std::fs::read_dir(workspace().join(folder)).expect("a folder of pages").flatten() {
                let path = Path::new(folder).join(entry.file_name());
                if path.extension().is_some_and(|extension| extension == "md") {
                    names.insert(path.to_str().expect("a name that is text").to_owned());
                }
            }
        }
        names.iter().map(|name| Page::read(name)).collect()
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        workspace().join(&self.name)
    }

    /// Its blocks of code.
    pub fn blocks(&self) -> Vec<Block> {
        let (mut blocks, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
        for line in self.text.lines() {
            match (line.strip_prefix("```"), &mut open) {
                (Some(language), None) => open = Some(Block { language: language.to_owned(), text: String::new() }),
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(block)) => block.text += &format!("{line}\n"),
                (None, None) => {}
            }
        }
        blocks
    }

    /// Its lines outside of blocks of code.
    pub fn prose(&self) -> Vec<&str> {
        let mut inside = false;
        self.text
            .lines()
            .filter(|line| {
                let edge = line.starts_with("```");
                inside ^= edge;
                !inside && !edge
            })
            .collect()
    }

    /// The pieces of code in its prose, without their backticks.
    pub fn spans(&self) -> Vec<String> {
        let prose = self.prose().join("\n");
        prose.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ").replace("\\|", "|")).collect()
    }

    /// The targets of its links, as written.
    pub fn links(&self) -> Vec<String> {
        let prose = self.prose().join("\n");
        let ends = prose.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
        ends.collect()
    }

    /// The anchors of its headings, which links name after a `#`.
    pub fn anchors(&self) -> BTreeSet<String> {
        self.prose().into_iter().filter(|line| line.starts_with('#')).map(anchor).collect()
    }

    /// Every command in its code, each on one line.
    pub fn commands(&self) -> Vec<String> {
        let of_blocks = self.blocks().into_iter().flat_map(|block| block.commands());
        of_blocks.chain(self.spans()).collect()
    }

    /// The blocks that are commands of a shell.
    pub fn shell_blocks(&self) -> Vec<Block> {
        self.blocks().into_iter().filter(|block| block.language == "sh").collect()
    }
}

impl Block {
    /// Its lines. A line that ends in a backslash is joined with the next.
    pub fn commands(&self) -> Vec<String> {
        self.text
            .replace("\\\n", " ")
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }
}

/// The anchor of a heading: lower case, dashes for spaces, and no punctuation.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_page() {
        let text =
            "# \"A\" and `b c`\nsee [x](y.md#z) and `leak\nscan`\n```sh\nleak \\\n    run\n# no heading [a](b)\n```\n";
        let page = Page { name: "x.md".to_owned(), text: text.to_owned() };
        assert_eq!(page.anchors(), BTreeSet::from(["a-and-b-c".to_owned()]));
        assert_eq!(page.links(), ["y.md#z"]);
        assert_eq!(page.spans(), ["b c", "leak scan"]);
        assert_eq!(page.shell_blocks()[0].commands(), ["leak run", "# no heading [a](b)"]);
        assert_eq!(page.commands(), ["leak run", "# no heading [a](b)", "b c", "leak scan"]);
    }
}
