//! What `mpirun` says: its boxes of many lines as one line, or not at all where a rank has said it better.

use std::io::{BufRead, BufReader, Read};

/// What boxes begin with that follow an exit code or a line of a rank's own.
const KNOWN: [&str; 3] = [
    "Primary job  terminated normally",
    "MPI_ABORT was invoked",
    "mpirun detected that one or more processes exited with non-zero status",
];

/// Passes on everything but boxes that say nothing new.
pub(crate) fn listen(from: impl Read, mut say: impl FnMut(&str)) {
    let mut reader = BufReader::new(from);
    let mut open: Option<Vec<String>> = None;
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
        let line = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
        bytes.clear();
        let is_edge = line.len() > 60 && line.bytes().all(|byte| byte == b'-');
        match (&mut open, is_edge) {
            (None, true) => open = Some(Vec::new()),
            (None, false) => say(&line),
            (Some(lines), false) => lines.push(line),
            (Some(lines), true) => {
                shorten(lines).iter().for_each(|line| say(line));
                open = None;
            }
        }
    }
    open.iter().flatten().for_each(|line| say(line));
}

/// What is worth saying of a box.
fn shorten(lines: &[String]) -> Vec<String> {
    let begins = |with: &str| lines.first().is_some_and(|line| line.starts_with(with));
    if begins("mpirun noticed that process") {
        return vec![format!("error: {}", lines[0])];
    }
    if KNOWN.into_iter().any(begins) { Vec::new() } else { lines.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_become_a_line_or_nothing() {
        let edge = "-".repeat(74);
        let text = format!(
            "one\n{edge}\nPrimary job  terminated normally, but 1 process returned\na code.\n{edge}\n\
             two\n{edge}\nmpirun noticed that process rank 1 with PID 0 on node vm exited on signal 9 (Killed).\n{edge}\n\
             {edge}\nThere are not enough slots\nfor it.\n{edge}\n{edge}\ntorn"
        );
        let mut said = Vec::new();
        listen(text.as_bytes(), |line| said.push(line.to_owned()));
        let killed = "error: mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 9 (Killed).";
        assert_eq!(said, ["one", "two", killed, "There are not enough slots", "for it.", "torn"]);
    }
}
