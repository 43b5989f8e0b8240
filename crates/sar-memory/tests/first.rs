//! A process that has one thread only, as a program has at the start of `main`.

fn main() {
    let is_known = cfg!(all(target_os = "linux", target_env = "gnu"));
    assert_eq!(sar_memory::keep_freed_memory(), is_known, "the settings at the start of a program");
}
