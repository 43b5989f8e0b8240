//! Temporary.
fn main() {
    let p = std::env::args().nth(1).unwrap();
    let s = std::time::Instant::now();
    let t = sar_weights::NamedTensors::read(p.as_ref()).unwrap();
    println!("read {:?} {}", s.elapsed(), t.len());
    let s = std::time::Instant::now();
    t.write_safetensors("/tmp/pt/big.safetensors".as_ref()).unwrap();
    println!("write {:?}", s.elapsed());
    drop(t);
    let s = std::time::Instant::now();
    let t = sar_weights::NamedTensors::read("/tmp/pt/big.safetensors".as_ref()).unwrap();
    println!("read st {:?}", s.elapsed());
    let st = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", st.lines().find(|l| l.starts_with("VmHWM")).unwrap());
    let _ = t;
}
