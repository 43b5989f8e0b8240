//! Temporary.
use sar_weights::NamedTensors;
fn main() {
    for path in std::env::args().skip(1) {
        let start = std::time::Instant::now();
        match NamedTensors::read(path.as_ref()) {
            Err(e) => println!("ERR {e}"),
            Ok(t) => {
                eprintln!("{path}: {:?}", start.elapsed());
                for (n, d) in t.iter() {
                    let mut h: u64 = 0;
                    for c in d.as_bytes().iter() {
                        h = (h * 31 + *c as u64) % 1_000_000_007;
                    }
                    println!("{n} {} {:?} {h}", d.dtype.name(), &d.shape[..]);
                }
                if std::env::var("OUT").is_ok() {
                    let s = std::time::Instant::now();
                    t.write_safetensors(std::env::var("OUT").unwrap().as_ref()).unwrap();
                    eprintln!("wrote {:?}", s.elapsed());
                }
            }
        }
    }
}
