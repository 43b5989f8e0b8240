//! Training of the whole chain: recipes as data, one train step for every objective, the stages of
//! a run, held-out figures and checkpoints.

pub mod recipe;
mod validate;

pub mod objective;
pub mod schedule;

pub mod ema;
pub mod gradients;
pub mod loss_scale;
pub mod optim;
pub mod step;

pub mod backbone_task;
pub mod tokenizer_task;

pub mod held_out;
pub mod report;

mod checkpoint;
mod k_means;
pub mod latents;
pub mod plan;
pub mod released;
pub mod run;
mod run_dir;
pub mod sampling;
mod stage;
mod tasks;
mod tokenizer_meter;
mod watch;
pub mod weights;

pub mod error;
pub mod event;

pub use error::TrainError;
pub use recipe::{Recipe, RecipeError};
pub use run::{Execution, train};
pub use run_dir::write_whole;
