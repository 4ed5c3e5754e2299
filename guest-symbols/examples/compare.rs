use guest_symbols::btf::Btf;
use guest_symbols::elf::Elf;
use std::collections::BTreeMap;
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let elf = Elf::open(path.as_ref()).unwrap();
    let t = std::time::Instant::now();
    let blob = guest_symbols::types::dwarf::read(&elf).unwrap();
    println!("read {:?} {} bytes", t.elapsed(), blob.len());
    let st = std::fs::read_to_string("/proc/self/status").unwrap();
    for l in st.lines().filter(|l| l.starts_with("VmHWM")) {
        println!("{l}");
    }
    let t = std::time::Instant::now();
    let dwarf = Btf::parse(&blob).unwrap();
    println!("parse {:?} {} types", t.elapsed(), dwarf.len());
    let btf = Btf::parse(&elf.section(".BTF").unwrap()).unwrap();
    let mut a: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (k, v) in btf.definitions() {
        a.entry(k).or_default().push(v);
    }
    let b: BTreeMap<String, String> = dwarf.definitions().collect();
    let mut counts: BTreeMap<(String, &str), (u32, Vec<String>)> = BTreeMap::new();
    for (k, v) in &a {
        let what = k.split(' ').next().unwrap().to_owned();
        let r = match b.get(k) {
            None => "missing",
            Some(w) if v.len() == 1 && v[0] == *w => "equal",
            Some(w) if v.contains(w) => "one of",
            Some(_) => "other",
        };
        let c = counts.entry((what, r)).or_default();
        c.0 += 1;
        if c.1.len() < 6 && r != "equal" {
            c.1.push(format!(
                "{k}: {} <> {}",
                v[0].chars().take(700).collect::<String>(),
                b.get(k).map_or("", |s| s).chars().take(700).collect::<String>()
            ));
        }
    }
    for (k, (n, ex)) in counts {
        println!("{k:?} {n}");
        for e in ex {
            println!("    {e}");
        }
    }
    println!("only dwarf: {}", b.keys().filter(|k| !a.contains_key(*k)).count());
}
