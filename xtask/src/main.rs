//! The project's commands: `cargo xtask VERB`. One file a command; nothing here links burn.

mod arrows;
mod bench;
mod cargo;
mod ci;
mod device;
mod features;
mod licenses;
mod links;
mod matrix;
mod mpirun;
mod package;
mod ranks;
mod sar;
mod test;
mod web;

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use cargo::{Failure, Outcome};

struct Verb {
    name: &'static str,
    about: &'static str,
    run: fn(&str, &[OsString]) -> Outcome,
}

#[rustfmt::skip]
const VERBS: [Verb; 21] = [
    Verb { name: "train", about: "train a tokenizer and a backbone, then refine it with SAR", run: sar::train },
    Verb { name: "sample", about: "draw images from a run or from weight files", run: sar::forward },
    Verb { name: "pack", about: "put the images of a sampling job, all of its shards, into one .npz or tar file", run: sar::forward },
    Verb { name: "eval", about: "measure how good images are beside real ones", run: sar::forward },
    Verb { name: "tokenizer-eval", about: "measure what a tokenizer loses on a folder of images", run: sar::forward },
    Verb { name: "study", about: "train many arms from the same weights and compare them with a control, over seeds", run: sar::forward },
    Verb { name: "analyze", about: "measure how a run's weights behave at every scale, before, during and after SAR", run: sar::forward },
    Verb { name: "edit", about: "draw parts of an image anew", run: sar::forward },
    Verb { name: "serve", about: "open a page to sample, edit and watch runs in a browser", run: sar::forward },
    Verb { name: "web", about: "put the page with the model in WebAssembly into a folder of static files: --out DIR", run: web::run },
    Verb { name: "convert", about: "convert weights between .pth, safetensors and a run's own files", run: sar::forward },
    Verb { name: "inspect", about: "say what a file of weights, a recipe or a run directory is", run: sar::forward },
    Verb { name: "parity", about: "compare with the golden tensors of a case folder", run: sar::forward },
    Verb { name: "test", about: "run all tests, or with --device the laws of one backend, with --matrix in all its builds; takes cargo test's arguments", run: test::run },
    Verb { name: "bench", about: "run the benches; takes criterion's arguments, or --against-pytorch, --gpu, --scaling, or --ranks", run: bench::run },
    Verb { name: "arrows", about: "check which crate may depend on which", run: arrows::run },
    Verb { name: "features", about: "check that tests share their build of burn with the program", run: features::run },
    Verb { name: "licenses", about: "check the licenses and sources of all dependencies", run: licenses::run },
    Verb { name: "links", about: "check the links of all Markdown files, and that the book has every chapter", run: links::run },
    Verb { name: "package", about: "pack what is published, without building it, and check sizes and what packages lack", run: package::run },
    Verb { name: "ci", about: "run every check of CI, the cheapest first", run: ci::run },
];

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(line) = failure.line() {
                eprintln!("error: {line}");
            }
            ExitCode::from(failure.code())
        }
    }
}

fn dispatch(args: &[OsString]) -> Outcome {
    let Some((name, rest)) = args.split_first() else {
        return Err(Failure::Usage(format!("no verb given\n\n{}", usage())));
    };
    if ["help", "--help", "-h"].iter().any(|help| name == help) {
        println!("{}", usage());
        return Ok(());
    }
    match VERBS.iter().find(|verb| name == verb.name) {
        Some(verb) => (verb.run)(verb.name, rest),
        None => {
            let name = name.display();
            Err(Failure::Usage(format!("there is no verb `{name}`\n\n{}", usage())))
        }
    }
}

fn usage() -> String {
    let mut text = String::from("usage: cargo xtask VERB [ARGUMENTS]\n");
    for verb in &VERBS {
        text += &format!("\n  {:<14} {}", verb.name, verb.about);
    }
    text += "\n\ntrain, sample, pack, eval, tokenizer-eval, study, analyze, edit, serve, convert, inspect and parity go to the binary `sar`, built for the";
    text += "\ndevice that --device names: flex (default), ndarray, wgpu or cuda, each with an optional index (cuda:1);
--fusion builds wgpu and cuda with burn's fusion. `train --ranks N` trains on N ranks through MPI, with
--hostfile FILE on other machines, with --restart-on-failure again and again from the last checkpoint.";
    text
}
