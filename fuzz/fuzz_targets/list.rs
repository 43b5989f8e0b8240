//! Any text as a list of images: the number of the first bad line, or entries that survive being
//! written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sar_data::list::parse_list;

fuzz_target!(|text: &str| {
    match parse_list(text) {
        Err(line) => assert!((1..=text.lines().count()).contains(&line)),
        Ok(entries) => {
            assert!(entries.is_sorted_by(|a, b| a.line < b.line));
            let lines = entries.iter().map(|entry| format!("{} {}\n", entry.path, entry.label));
            let again = parse_list(&lines.collect::<String>()).expect("just written");
            let parts =
                |entry: &sar_data::list::ListEntry| (entry.path.clone(), entry.label.clone());
            assert!(again.iter().map(parts).eq(entries.iter().map(parts)));
        }
    }
});
