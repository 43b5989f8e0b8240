//! What a run says while it runs: bars on a terminal, lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use sar_train::StageId;
use sar_train::event::{Event, Observer};

use crate::events::{Events, Pace, Said};

/// Without a terminal, steps are reported at most this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

pub(crate) struct Progress {
    /// Told as well.
    events: Events,
    is_terminal: bool,
    stage: Option<Stage>,
    last_latents: Instant,
}

struct Stage {
    bar: Option<ProgressBar>,
    steps: u64,
    batch: usize,
    /// Steps that an earlier process made.
    before: u64,
    start: Instant,
    last_line: Instant,
    losses: String,
}

impl Stage {
    fn images_per_second(&self, done: u64) -> f64 {
        let steps = done.saturating_sub(self.before) as f64;
        steps * self.batch as f64 / self.start.elapsed().as_secs_f64().max(1e-9)
    }

    fn to_go_s(&self, done: u64) -> f64 {
        let each = self.start.elapsed().as_secs_f64() / (done - self.before).max(1) as f64;
        (self.steps - done) as f64 * each
    }
}

impl Progress {
    pub(crate) fn new(events: Events) -> Self {
        let is_terminal = stderr().is_terminal();
        Self { events, is_terminal, stage: None, last_latents: Instant::now() }
    }

    pub(crate) fn line(&self, text: &str) {
        match self.stage.as_ref().and_then(|stage| stage.bar.as_ref()) {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Removes a bar that a failed run leaves.
    pub(crate) fn clear(&mut self) {
        if let Some(Stage { bar: Some(bar), .. }) = self.stage.take() {
            bar.abandon();
        }
    }

    fn bar(&self, name: StageId, steps: u64, done: u64) -> Option<ProgressBar> {
        if !self.is_terminal {
            return None;
        }
        let template =
            "{prefix:>9} {bar:30} {pos}/{len}  {elapsed} elapsed, {eta} to go  {wide_msg}";
        let style = ProgressStyle::with_template(template).expect("a constant template");
        let bar = ProgressBar::new(steps).with_style(style).with_prefix(name.name());
        // The position from which the ETA counts.
        bar.set_position(done);
        bar.reset_eta();
        Some(bar)
    }
}

impl Observer for Progress {
    fn event(&mut self, event: &Event<'_>) {
        let pace = match (event, &self.stage) {
            (Event::Step { step, .. }, Some(stage)) => Some(Pace {
                steps: stage.steps,
                images_per_s: stage.images_per_second(step + 1),
                to_go_s: stage.to_go_s(step + 1),
            }),
            _ => None,
        };
        if let Some(said) = Said::of(event, pace) {
            self.events.say(&said);
        }
        match *event {
            Event::RunStarted { recipe, dir } => {
                self.line(&format!("recipe {recipe}, run directory {}", dir.display()));
            }
            Event::StageStarted { stage, steps, done, batch } => {
                let now = Instant::now();
                self.line(&format!("{stage}: {steps} steps of {batch} images"));
                self.stage = Some(Stage {
                    bar: self.bar(stage, steps, done),
                    steps,
                    batch,
                    before: done,
                    start: now,
                    last_line: now,
                    losses: String::new(),
                });
            }
            Event::Step { stage: name, step, losses } => {
                let Some(stage) = &mut self.stage else { return };
                if let Some(losses) = losses {
                    let shown = losses.iter().filter(|(part, _)| *part != "gradient_norm");
                    let shown: Vec<_> =
                        shown.map(|(part, value)| format!("{part} {value:.4}")).collect();
                    stage.losses = shown.join("  ");
                }
                let done = step + 1;
                let rate = stage.images_per_second(done);
                if let Some(bar) = &stage.bar {
                    bar.set_message(format!("{rate:.1} images/s  {}", stage.losses));
                    bar.set_position(done);
                } else if losses.is_some() && stage.last_line.elapsed() >= LINE_EVERY {
                    stage.last_line = Instant::now();
                    eprintln!(
                        "{name} {done}/{}  {} to go  {rate:.1} images/s  {}",
                        stage.steps,
                        clock(Duration::from_secs_f64(stage.to_go_s(done))),
                        stage.losses
                    );
                }
            }
            Event::StageEnded { stage: name, wall_s } => {
                let Some(stage) = self.stage.take() else { return };
                if let Some(bar) = &stage.bar {
                    bar.finish_and_clear();
                }
                let rate = stage.images_per_second(stage.steps);
                let time = clock(Duration::from_secs_f64(wall_s));
                eprintln!("{name}: done in {time}, {rate:.1} images/s  {}", stage.losses);
            }
            Event::Latents { done, of } if self.last_latents.elapsed() >= LINE_EVERY => {
                self.last_latents = Instant::now();
                self.line(&format!("{done} of {of} latents"));
            }
            Event::Working { what } => self.line(what),
            Event::Note { message } => self.line(message),
            Event::Wrote { path } => self.line(&format!("wrote {}", path.display())),
            Event::Warning { message } => self.line(&format!("warning: {message}")),
            _ => {}
        }
    }
}

/// `1:02:03` or `2:03`.
pub(crate) fn clock(time: Duration) -> String {
    let s = time.as_secs_f64().round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, m, s) => format!("{m}:{s:02}"),
        (h, m, s) => format!("{h}:{m:02}:{s:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_like_a_clock() {
        let at = |s: f64| clock(Duration::from_secs_f64(s));
        assert_eq!(at(0.4), "0:00");
        assert_eq!(at(59.6), "1:00");
        assert_eq!(at(3723.0), "1:02:03");
    }
}
