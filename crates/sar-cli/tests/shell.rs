//! Completions and manual pages say what the program says.

mod program;

use std::fs;
use std::process::Command;

use program::{does, refuses, skipped};

#[test]
fn shells_complete_verbs_and_options() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (script, _) = does(folder.path(), &["completions", shell]);
        for word in ["sample", "tokenizer-eval", "serve", "guidance", "run-dir"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
        if shell == "bash" {
            let path = folder.path().join("sar.bash");
            fs::write(&path, &script).unwrap();
            let complete = format!(
                "source {}; COMP_WORDS=(sar sample --gui); COMP_CWORD=2; _sar sar --gui sample; echo ${{COMPREPLY[@]}}",
                path.display()
            );
            match Command::new("bash").args(["-c", &complete]).output() {
                Ok(output) => {
                    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "--guidance");
                }
                Err(_) => skipped("there is no bash"),
            }
        }
    }
    let (code, _, error) = program::sar(folder.path(), &["completions", "cmd"]);
    assert!(code == Some(2) && error.contains("powershell"), "{error}");
}

/// A disk that is full, and a reader that has gone.
#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_said_is_no_success() {
    use std::process::Stdio;
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str], stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
        command.current_dir(folder.path()).args(args).stdout(stdout);
        let output = command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    let sample = ["sample", "--n", "1", "--class", "food", "--scales", "1_2_3", "--json"];
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/recipes/emoji-quick.toml");
    for args in [&["completions", "bash"][..], &["inspect", recipe], &sample] {
        let (code, error) = run(args, full());
        let last = error.lines().last().unwrap_or_default();
        assert_eq!(code, Some(2), "{args:?}: {error}");
        assert!(last.starts_with("error: the standard output: No space left"), "{args:?}: {error}");
        // Whoever has read enough closes the pipe.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, error) = run(args, Stdio::from(writer));
        assert!(code == Some(0) && !error.contains("error: "), "{args:?}: {error}");
    }
}

#[test]
fn every_verb_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    does(folder.path(), &["man", "pages/man1"]);
    let (help, _) = does(folder.path(), &["--help"]);
    let page =
        |name: &str| fs::read_to_string(folder.path().join("pages/man1").join(name)).unwrap();
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let verbs = commands.lines().filter_map(|line| {
        let line = line.strip_prefix("  ")?;
        line.split_whitespace().next().filter(|_| !line.starts_with(' '))
    });
    let mut n = 0;
    for verb in verbs.filter(|verb| *verb != "help") {
        assert!(page(&format!("sar-{verb}.1")).contains(".SH SYNOPSIS"), "{verb}");
        n += 1;
    }
    assert!(n >= 13, "{n} verbs");
    assert!(page("sar-sample.1").contains("guidance"));
    assert!(page("sar.1").contains("sample"));
    refuses(folder.path(), &["man", "/proc/none"], &["/proc/none"]);
}
