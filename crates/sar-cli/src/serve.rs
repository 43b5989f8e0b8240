//! `sar serve`: sampling, editing and runs in a browser.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::backend::AutodiffBackend;
use sar_serve::{Server, Settings};

use crate::Verdict;
use crate::device::{DeviceArg, Job};
use crate::generation::{Files, WeightsArgs};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    weights: WeightsArgs,
    /// The address that is listened on; beyond this machine, as in 0.0.0.0, it needs a --token.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// The port [default: one that is free]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// What clients have to know: 16 or more letters and digits. Nothing is encrypted: beyond a network
    /// that you trust, put a proxy with TLS in front, and name it with --origin.
    #[arg(long, value_name = "TEXT")]
    token: Option<String>,
    /// What browsers call it behind a proxy on this machine, as in `https://sar.example.com`.
    #[arg(long, value_name = "URL")]
    origin: Option<String>,
    /// A folder of runs, or a run, to watch.
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let Args { weights, host, port, token, origin, runs, device } = args;
    let command = format!("sar sample{}{}", weights.command_line(), device.command_line());
    let files = weights.files()?;
    let settings = Settings { host, port, token, origin, runs, command, ..Settings::default() };
    device.run(Serve { files, settings })
}

struct Serve {
    files: Files,
    settings: Settings,
}

impl Job for Serve {
    type Output = Verdict;

    fn run<A: AutodiffBackend>(self, device: A::Device, _workers: usize) -> Result<Verdict> {
        let Self { files, settings } = self;
        let pipeline = files.load::<A::InnerBackend>(&device)?;
        let made_with = Some(files.made_with(&pipeline, &device));
        let pipeline = files.in_precision(pipeline)?;
        let settings = Settings { made_with, ..settings };
        let has_origin = settings.origin.is_some();
        let server = Server::bind(pipeline, settings)?;
        println!("{}", server.url());
        if has_origin {
            eprintln!("its proxy has to pass on to http://{}", server.address());
        }
        eprintln!("open it in a browser; Ctrl-C ends it");
        if server.address().ip().is_unspecified() {
            eprintln!("from other machines, with the name of this one in the place of its address");
        }
        server.run()?;
        Ok(Verdict::Good)
    }
}
