//! Assertions over several values or texts that name those that differ.

/// Asserts that every value is as expected: `assert_fields!(context; found => expected, ...)`.
///
/// The message has one line per value that differs, with the expression, the expected value and the
/// found one. `context` is printed after these lines.
#[macro_export]
macro_rules! assert_fields {
    ($context:expr; $($found:expr => $expected:expr),+ $(,)?) => {{
        let mut differ = Vec::<String>::new();
        $(match (&$found, &$expected) {
            (found, expected) if *found != *expected => {
                differ.push(format!("{}:\n    expected {expected:?}\n       found {found:?}", stringify!($found)));
            }
            _ => {}
        })+
        assert!(differ.is_empty(), "{}\n{}", differ.join("\n"), $context);
    }};
}

/// Asserts that `text` contains every one of `parts`. The message has the missing parts.
///
/// # Panics
/// If a part is missing.
#[track_caller]
pub fn assert_has(text: &str, parts: &[&str]) {
    let missing: Vec<&&str> = parts.iter().filter(|part| !text.contains(**part)).collect();
    assert!(missing.is_empty(), "no {missing:?} in:\n{text}");
}

#[cfg(test)]
mod tests {
    use super::assert_has;

    #[test]
    fn values_that_differ_are_named() {
        assert_fields!(""; 1 + 1 => 2, "a" => "a");
        let fails = || assert_fields!("see there"; [1, 2].len() => 3, 1 => 1, "a".to_owned() => "b");
        let why = std::panic::catch_unwind(fails).expect_err("two differ");
        let text = why.downcast_ref::<String>().expect("a message");
        assert_eq!(
            text,
            "[1, 2].len():\n    expected 3\n       found 2\n\"a\".to_owned():\n    expected \"b\"\n       found \"a\"\nsee there"
        );
    }

    #[test]
    fn missing_parts_are_named() {
        assert_has("a line", &["a", "line"]);
        let why = std::panic::catch_unwind(|| assert_has("a line", &["a", "b", "c"])).expect_err("two are missing");
        let text = why.downcast_ref::<String>().expect("a message");
        assert_eq!(text, "no [\"b\", \"c\"] in:\na line");
    }
}
