//! `work NAME`: sets a piece of work up, says `ready`, and runs it once for every line on stdin;
//! each run's seconds come on a line of their own, and at the end the peak memory in MB.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::time::Instant;

use burn::backend::Autodiff;
use burn_flex::Flex;
use sar_bench::work;
use sar_train::report::peak_rss_mb;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let Some(mut run) = work::setup::<Autodiff<Flex>>(&name, Default::default()) else {
        eprintln!("error: there is no work `{name}`");
        return ExitCode::from(2);
    };
    run();
    let say = |text: String| writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
    let mut talk = || -> io::Result<()> {
        say("ready".into())?;
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
