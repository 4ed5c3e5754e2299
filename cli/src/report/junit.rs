//! JUnit XML, which CI systems show.

use super::lines::{Outcome, Run, Test};
use super::words::{KERNEL, describe, stacks};
use detector::report::Group;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

/// Writes one suite per run.
///
/// All leaks of a test are one failure, since many readers show only the first. Leaks outside of
/// tests belong to the case `kernel`. A missing result is an error of the case `detector`.
///
/// # Errors
/// The error of the XML writer, which is not expected.
pub fn write(runs: &[Run]) -> Result<String, quick_junit::SerializeError> {
    let mut report = Report::new("libleak");
    for (i, run) in runs.iter().enumerate() {
        let name = if runs.len() == 1 { "libleak".to_owned() } else { format!("libleak.{}", i + 1) };
        let case = |test: &str, status| {
            let mut case = TestCase::new(test, status);
            case.set_classname(name.as_str());
            case
        };
        let mut suite = TestSuite::new(name.as_str());
        for test in &run.tests {
            suite.add_test_case(case(&test.name, of_test(test)));
        }
        if !run.reports.is_empty() {
            let mut kernel = case(KERNEL, of_leaks(&run.others).unwrap_or_else(TestCaseStatus::success));
            let closing: String = run.reports.last().map(|r| r.closing.clone()).unwrap_or_default();
            kernel.set_system_out(closing);
            suite.add_test_case(kernel);
        }
        if let Some(why) = run.failure() {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
            status.set_message(why).set_type("detector");
            suite.add_test_case(case("detector", status));
        }
        if !run.warnings.is_empty() {
            suite.set_system_err(run.warnings.join("\n"));
        }
        report.add_test_suite(suite);
    }
    report.to_string()
}

fn of_test(test: &Test) -> TestCaseStatus {
    match (of_leaks(&test.leaks), test.outcome) {
        (Some(leaks), _) => leaks,
        (None, Outcome::Ok | Outcome::Unknown) => TestCaseStatus::success(),
        (None, Outcome::Skip) => TestCaseStatus::skipped(),
        (None, Outcome::NotOk) => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message("the test itself failed").set_type("test");
            status
        }
    }
}

fn of_leaks(leaks: &[Group]) -> Option<TestCaseStatus> {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
    status.set_message(describe(leaks)).set_type("leak").set_description(stacks(leaks));
    (!leaks.is_empty()).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::lines::tests::text;

    #[test]
    fn every_test_is_a_case() {
        let xml = write(&[Run::read(&text()).unwrap()]).unwrap();
        let suites = r#"<testsuites name="libleak" tests="5" skipped="1" failures="4" errors="0">"#;
        assert!(xml.contains(suites), "{xml}");
        assert!(xml.contains(r#"<testcase name="one" classname="libleak">"#), "{xml}");
        assert!(xml.contains("2 leaks, 96 bytes: 1 object of 64 bytes in leak_a [zoo]; 1 object of 32"), "{xml}");
        assert!(xml.contains("unreferenced object 0xffff888100000000 (size 64):"), "{xml}");
        assert!(xml.contains("    leak_a+0x2/0x40 [zoo]"), "{xml}");
        assert!(xml.contains("<skipped/>") && xml.contains("the test itself failed"), "{xml}");
        assert!(xml.contains(r#"<testcase name="kernel""#) && xml.contains("libleak: 3 unreferenced"), "{xml}");
    }

    #[test]
    fn no_result_is_an_error() {
        let xml = write(&[Run::default(), Run::default()]).unwrap();
        assert!(xml.contains(r#"<testcase name="detector" classname="libleak.2">"#), "{xml}");
        assert!(xml.contains(r#"<error message="no report was made" type="detector"/>"#), "{xml}");
    }
}
