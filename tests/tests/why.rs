//! `why=` names the holders of an object.

use tests::Guest;
use tests::assert_has;

#[test]
fn the_holders_of_an_object_are_named_up_to_the_root() {
    let boot = Guest::new("why", "bookworm-backports")
        .module("zoo")
        .run(&["insmod:zoo", "sleep:2"])
        .option("why=specimen+")
        .boot();
    boot.assert_ended_well();
    let mut held = boot.console.lines().filter_map(|l| l.split_once("zoo: held in-vmalloc "));
    let address = held.next().map(|(_, rest)| rest.split(' ').next().unwrap()).expect("the zoo holds it");
    let headline = format!("libleak: why: {address} (size 256, by specimen+");
    let lines = boot.stderr.lines().skip_while(|l| !l.starts_with(&headline)).skip(1);
    let path: Vec<&str> = lines.take_while(|l| l.starts_with("libleak: why:   ")).collect();
    assert!(path.len() >= 2, "{}", boot.hint());
    // tests/modules/zoo/zoo_held.c: vmalloc_holder[700].
    assert_has(path[0], &["   +0x15e0 of ", ", vmalloc, by "]);
    assert!(path[path.len() - 1].contains("   a root "), "{path:#?}; {}", boot.hint());
    // Reported objects have no holder.
    let planted = boot.stderr.lines().filter(|l| l.ends_with(": nobody refers to it")).count();
    assert!(planted <= boot.report().objects.len(), "{}", boot.hint());
}
