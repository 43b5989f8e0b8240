//! Ctrl-C and SIGTERM: the first asks a verb to end well, the second ends it at once.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

/// What an interrupted program ends with by convention, 128 + SIGINT.
pub(crate) const INTERRUPTED: i32 = 130;

static STOP: AtomicBool = AtomicBool::new(false);

/// Whether the first has come, from now on; it is answered with a line, if there is one.
pub(crate) fn watch(answer: &'static str) -> Result<&'static AtomicBool> {
    ctrlc::set_handler(move || {
        if STOP.swap(true, Ordering::Relaxed) {
            process::exit(INTERRUPTED);
        }
        if !answer.is_empty() {
            eprintln!("{answer}; once more to stop at once");
        }
    })?;
    Ok(&STOP)
}

/// Whether the first has come.
pub(crate) fn has_come() -> bool {
    STOP.load(Ordering::Relaxed)
}
