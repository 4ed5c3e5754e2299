//! A guest without leaks has an empty report, with any number of vCPUs.
//!
//! Rare failures need more than one boot. LIBLEAK_CLEAN_BOOTS sets the number of boots of each
//! configuration.

use tests::Guest;

fn nothing_is_reported(kernel: &str, vcpus: u32) {
    let boots = match std::env::var("LIBLEAK_CLEAN_BOOTS") {
        Ok(n) => n.parse().expect("LIBLEAK_CLEAN_BOOTS is a number"),
        Err(_) => 1,
    };
    for n in 1..=boots {
        let boot = Guest::new(&format!("clean-{kernel}-{vcpus}-{n}"), kernel).smp(vcpus).run(&["workload"]).boot();
        boot.assert_ended_well();
        let report = boot.report();
        assert_eq!(report.objects, [], "boot {n}; {}", boot.hint());
        boot.assert_trustworthy();
    }
}

#[test]
fn nothing_is_reported_on_linux_6_1_with_1_vcpu() {
    nothing_is_reported("bookworm", 1);
}

#[test]
fn nothing_is_reported_on_linux_6_1_with_2_vcpus() {
    nothing_is_reported("bookworm", 2);
}

#[test]
fn nothing_is_reported_on_linux_6_1_with_4_vcpus() {
    nothing_is_reported("bookworm", 4);
}

#[test]
fn nothing_is_reported_on_linux_6_12_with_1_vcpu() {
    nothing_is_reported("bookworm-backports", 1);
}

#[test]
fn nothing_is_reported_on_linux_6_12_with_2_vcpus() {
    nothing_is_reported("bookworm-backports", 2);
}

#[test]
fn nothing_is_reported_on_linux_6_12_with_4_vcpus() {
    nothing_is_reported("bookworm-backports", 4);
}
