//! An assertion over several values that names those that differ.

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

#[cfg(test)]
mod tests {
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
}
