//! Completions and manual pages say what the program says.

mod program;

use std::fs;
use std::process::Command;

use program::{does, refuses};

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
                Err(_) => println!("skipped: there is no bash"),
            }
        }
    }
    let (code, _, error) = program::sar(folder.path(), &["completions", "cmd"]);
    assert!(code == Some(2) && error.contains("powershell"), "{error}");
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
