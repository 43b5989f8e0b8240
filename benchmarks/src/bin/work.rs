//! `work NAME [DEVICE [PRECISION]]`: sets a piece of work up, says `ready` and the vector instructions
//! that it runs with, as in `ready avx512` (of the CPU's operators, whatever the device), and runs it
//! once for every line on stdin; each run's seconds come on a line of their own, and at the end the
//! peak memory in MB. The device is `flex` or, where it is built in, `cuda`; the precision `f32`,
//! `bf16` or `f16`.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::time::Instant;

use burn::backend::Autodiff;
use burn::tensor::backend::AutodiffBackend;
use sar_bench::work;
use sar_kernels::CpuLevel;
use sar_model::Precision;
use sar_train::report::peak_rss_mb;

fn main() -> ExitCode {
    sar_memory::keep_freed_memory();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |at: usize| args.get(at).map(String::as_str);
    let name = arg(0).unwrap_or_default();
    let precision: Precision = match arg(2).unwrap_or("f32").parse() {
        Ok(precision) => precision,
        Err(error) => return refused(&error.to_string()),
    };
    let level = match CpuLevel::chosen() {
        Ok(level) => level,
        Err(error) => return refused(&error),
    };
    let set_up = |name: &str| match arg(1).unwrap_or("flex") {
        "flex" => set_up::<Autodiff<burn_flex::Flex>>(name, precision, 2, Default::default()),
        #[cfg(feature = "cuda")]
        "cuda" => set_up::<Autodiff<burn_cuda::Cuda>>(name, precision, 1, Default::default()),
        other => Err(format!("no device `{other}` is built in")),
    };
    // Once before it is timed; of many images that are said, as many as without.
    let few = name.rsplit_once("-n").filter(|(_, n)| n.parse::<usize>().is_ok());
    let set_up = || -> Result<_, String> {
        let mut run = set_up(few.map_or(name, |(few, _)| few))?;
        run();
        match few {
            None => Ok(run),
            Some(_) => {
                drop(run);
                set_up(name)
            }
        }
    };
    let mut run = match set_up() {
        Ok(run) => run,
        Err(why) => return refused(&why),
    };
    let say = |text: String| writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
    let mut talk = || -> io::Result<()> {
        say(format!("ready {level}"))?;
        for line in io::stdin().lock().lines() {
            line?;
            let start = Instant::now();
            run();
            say(start.elapsed().as_secs_f64().to_string())?;
        }
        say(peak_rss_mb().map_or_else(|| "unknown".into(), |mb| mb.to_string()))
    };
    match talk() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn set_up<A: AutodiffBackend>(
    name: &str,
    precision: Precision,
    workers: usize,
    device: A::Device,
) -> Result<Box<dyn FnMut()>, String> {
    if !precision.is_supported::<A::InnerBackend>(&device) {
        return Err(format!("this device has no matrix products in {precision}"));
    }
    let work = work::setup::<A>(name, precision, workers, device);
    work.ok_or_else(|| format!("there is no work `{name}`"))
}

fn refused(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::from(2)
}
