//! Writes the seed inputs for fuzzing: `cargo run -p hostile --example seeds FOLDER`. Each target
//! gets a folder in FOLDER.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).expect("a folder");
    for (target, _) in hostile::TARGETS {
        let folder = Path::new(&folder).join(target);
        std::fs::create_dir_all(&folder)?;
        for (i, seed) in hostile::seeds::of(target).iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{i}")), seed)?;
        }
    }
    Ok(())
}
