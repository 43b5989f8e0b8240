//! Training of the whole chain: recipes as data, one train step for every objective, the stages of
//! a run, held-out figures and checkpoints.

pub mod backbone_task;
pub mod gradients;
pub mod objective;
pub mod optim;
pub mod schedule;
pub mod step;

/// Stand-in until the other modules are in.
pub type TrainError = std::io::Error;
