//! Parses the text of markers.

/// What a marker asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// A scan.
    Scan,
    /// A mark of this name.
    Mark(Option<&'a [u8]>),
    /// Ignore what is unreferenced now.
    Clear,
    /// A test of this name begins, or without a name the last one ends.
    Test(Option<&'a [u8]>),
}

/// Parses a text. `Err` holds a word that is no command; `None` means that the text is no marker.
pub fn parse(text: &[u8]) -> Option<Result<Command<'_>, &[u8]>> {
    // Lines for /dev/kmsg may start with a priority.
    let priority = text.strip_prefix(b"<").and_then(|rest| {
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        rest[digits..].strip_prefix(b">")
    });
    let text = priority.unwrap_or(text);
    let text = text.strip_prefix(b"leak:").or_else(|| text.strip_prefix(b"libleak:"))?;
    let end = text.iter().position(|b| matches!(b, b'\n' | b'\0')).unwrap_or(text.len());
    let text = text[..end].trim_ascii();
    let (word, name) = text.split_at(text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len()));
    let name = Some(name.trim_ascii()).filter(|name| !name.is_empty());
    Some(match (word, name) {
        (b"scan", None) => Ok(Command::Scan),
        (b"clear", None) => Ok(Command::Clear),
        (b"mark", name) => Ok(Command::Mark(name)),
        (b"test", name) => Ok(Command::Test(name)),
        _ => Err(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let command = |text: &'static str| parse(text.as_bytes()).unwrap().unwrap();
        for text in [
            "leak:scan",
            "leak:scan\n",
            "libleak: scan",
            "<6>libleak: scan\n",
            "leak: scan\0whatever",
            "leak:scan\nmore",
        ] {
            assert_eq!(command(text), Command::Scan, "{text}");
        }
        assert_eq!((command("leak:clear"), command("leak:mark")), (Command::Clear, Command::Mark(None)));
        assert_eq!(command("leak:mark before"), Command::Mark(Some(b"before")));
        assert_eq!(command("leak:test a test, with words \n"), Command::Test(Some(b"a test, with words")));
        assert_eq!(command("libleak: test"), Command::Test(None));
    }

    #[test]
    fn what_is_no_marker_or_no_command() {
        for text in ["", "<", "<6>", "leak", "leaks:scan", " leak:scan", "bash", "<x>leak:scan", "Leak:scan"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        for text in [
            "leak:",
            "leak:scans",
            "leak:scan now",
            "leak:\0scan",
            "leak:\u{ff}",
            "libleak:<6>scan",
            "leak:test\u{b}\nA",
        ] {
            let parsed = parse(text.as_bytes()).unwrap();
            assert!(parsed.is_err() || parsed == Ok(Command::Test(None)), "{text:?}");
        }
        assert_eq!(parse(&[b'<'; 1 << 16]), None);
        assert_eq!(
            parse(&[b"leak:test ".to_vec(), vec![0xff; 1 << 16]].concat()),
            Some(Ok(Command::Test(Some(&[0xff; 1 << 16]))))
        );
    }
}
