//! Assembles modules written as text, for `tests/bench/neighbours`: `assemble IN.wat OUT.wasm`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut names = std::env::args().skip(1);
    let (Some(text), Some(module)) = (names.next(), names.next()) else {
        return Err("assemble IN.wat OUT.wasm".into());
    };
    std::fs::write(module, wat::parse_file(text)?)?;
    Ok(())
}
