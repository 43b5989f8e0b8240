//! How long ranks take to give each other messages of several sizes, medians in seconds.
//!
//! ```sh
//! cargo build --release --package sar-exchange --features mpi --example messages --target-dir target/mpi
//! mpirun -n 4 --bind-to none target/mpi/release/examples/messages
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

use sar_exchange::mpi;

/// Bytes to each of the others, and how often.
const SIZES: [(usize, usize); 4] = [(0, 400), (1 << 16, 100), (1 << 20, 40), (1 << 24, 10)];

fn main() -> Result<(), Box<dyn Error>> {
    let (_engine, group) = mpi::start(Duration::from_secs(60))?;
    for (bytes, rounds) in SIZES {
        let message = vec![1; bytes];
        let mut seconds = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let begun = Instant::now();
            group.all_gather(&message)?;
            seconds.push(begun.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        if group.leads() {
            let (ranks, median) = (group.ranks(), seconds[rounds / 2]);
            println!("{ranks} ranks, {bytes} bytes to each other one: {median:.6} s");
        }
    }
    Ok(())
}
