//! Ctrl-C and SIGTERM, and among ranks SIGUSR1: the first asks a verb to end well, the second ends it at once.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

/// What an interrupted program ends with by convention, 128 + SIGINT.
pub(crate) const INTERRUPTED: i32 = 130;

static STOP: AtomicBool = AtomicBool::new(false);

/// Whether the first has come, from now on; it is answered with a line, if there is one.
pub(crate) fn watch(answer: &'static str) -> Result<&'static AtomicBool> {
    // Launchers of MPI pass this one on to all ranks; Ctrl-C they answer themselves, with a kill.
    #[cfg(all(unix, feature = "mpi"))]
    {
        let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGUSR1])?;
        std::thread::spawn(move || {
            signals.forever().for_each(|_| STOP.store(true, Ordering::Relaxed));
        });
    }
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
