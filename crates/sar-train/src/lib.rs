#![doc = include_str!("../README.md")]

pub mod recipe;
mod validate;

pub mod context_noise;
pub mod objective;
pub mod schedule;

pub mod ema;
pub mod gradients;
pub mod graphs;
pub mod learner;
pub mod loss_scale;
pub mod muon;
pub mod optim;
mod slices;
pub mod step;
mod threads;
pub mod wire;

pub mod tokens;

pub mod backbone_loss;
pub mod perception;
pub mod tokenizer_loss;

pub mod held_out;
pub mod quality;
pub mod report;

pub mod analysis;
pub mod dynamics;

mod checkpoint;
mod run_dir;
mod stage;
mod tensorboard;
mod watch;

mod batches;
mod k_means;
pub mod latents;

mod adversary;
mod backbone_stage;
mod tokenizer_stage;

mod figures;
mod init;
pub mod plan;
pub mod program;
pub mod run;
pub mod together;
mod turns;

#[cfg(test)]
mod testing;

pub mod error;
pub mod event;

pub use error::TrainError;
pub use recipe::{Recipe, RecipeError};
pub use run::{Execution, train};
pub use sar_pipeline::StageId;
