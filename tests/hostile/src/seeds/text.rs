//! Text formats: requests, reports, suppressions, options, the guest's console.

use super::after;
use detector::guest_tests::{Test, Verdict};
use detector::report::{Frame, Function, Group, Place, Report, json};

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub(super) fn requests() -> Vec<Vec<u8>> {
    let all = [
        "{\"do\":\"scan\",\"min_age\":1.5,\"id\":7}\n{\"do\":\"clear\"}\n",
        "{\"do\":\"mark\",\"name\":\"a\"}\n{\"do\":\"diff\",\"name\":\"a\",\"limit\":3,\"by\":\"site\"}\n",
        "{\"do\":\"why\",\"address\":\"0xffff888000000040\"}\n{\"do\":\"snapshot\",\"path\":\"/tmp/s\"}\n",
        "{\"do\":\"status\"}\n{\"do\":\"top\",\"by\":\"stack\"}\n{\"do\":\"events\"}\nnonsense\n",
        "{\"schema\":1,\"do\":\"top\",\"ok\":true,\"live\":{\"objects\":1,\"bytes\":2},\"total\":0,\"places\":[{\"now\":{\"objects\":1,\"bytes\":2},\"stack\":[{\"address\":\"0x10\",\"function\":\"f\",\"offset\":1,\"size\":2}]}]}\n",
        "{\"event\":\"mark\",\"name\":\"a\",\"at_ms\":1,\"live\":{\"objects\":1,\"bytes\":2}}\n{\"event\":\"end\"}\n",
    ];
    all.iter().map(|text| after(200, text.as_bytes())).collect()
}

pub(super) fn reports() -> Vec<Vec<u8>> {
    let function = Function { name: "kmalloc".into(), offset: 4, size: 16, module: Some("leaky".into()) };
    let place = Place { function: Some("inlined".into()), file: "mm/slab.c".into(), line: 3 };
    let frame = Frame { address: 0xffff_ffff_8100_0004, function: Some(function), places: vec![place] };
    let test = Test { name: "first".into(), result: Some(Verdict::NotOk) };
    let group = Group { direct: true, test: Some("first".into()), frames: vec![frame], leaks: Vec::new() };
    let report = Report {
        release: "6.1.0-test".into(),
        groups: vec![group],
        tests: vec![test],
        closing: "libleak: 1 unreferenced object\nmore\n".into(),
        ..Report::default()
    };
    let whole = json::write(&report);
    vec![
        json::write(&Report::default()).into(),
        whole.clone().into(),
        format!("{{{}}}", json::fields(&report)).into(),
        [whole, json::message("warning", "text")].concat().into(),
    ]
}

pub(super) fn suppressions() -> Vec<Vec<u8>> {
    texts(&[
        "# of the kernel's own test\nleak:^kmemleak_test$\nleak:drivers/gpu/*.c\n\0kmemleak_test\ndrivers/gpu/drm/a.c\n",
        "leak:*\n\0a\nb\n",
        "leak:foo$\r\n leak:a*b*c\t\nleak:^a*\n\0foo_foo\naxbxc\nfoobar\n",
        "leak:\n\0a",
    ])
}

pub(super) fn options() -> Vec<Vec<u8>> {
    texts(&[
        "report=/tmp/r\nformat=console\neach=on\nreport=a.jsonl\nsuppress=a\nsuppress-print=b\nframes=64\ndebug=c",
        "scan=10\nmin-age=0\nqmp=/a\nsymbols=b\naudit=on\nlive=slab\npages=on\nwhy=kmalloc\nsnapshot=s\ncontrol=c",
        "guest-markers=off\ntests=ktap\nper-test=on\nthreads=2",
        "help",
        "scan=0",
    ])
}

pub(super) fn console() -> Vec<Vec<u8>> {
    texts(&[
        "KTAP version 1\n1..2\n    # Subtest: example\n    ok 1 simple\n    not ok 2 - bad # why\nnot ok 1 example\nok 2 alone # SKIP\n",
        "TAP version 13\n# selftests: net: a.sh\n# ok 1 first\n# # Subtest: deep\n# # ok 1 b\nok 1 selftests: net: a.sh # exit=1\n",
        "leak:test A\nok 1 b\n<6>libleak: scan\nleak:mark now\nleak:clear\nleak:test\nleak:nonsense\n",
    ])
}
