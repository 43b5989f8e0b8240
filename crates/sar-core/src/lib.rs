#![doc = include_str!("../README.md")]

pub mod classes;
pub mod first_scale;
pub mod pixels;
pub mod resample;
pub mod rng;
pub mod roles;
pub mod scales;
pub mod schedule_sampler;

pub use classes::{ClassError, class_query, find_class};
pub use first_scale::FirstScale;
pub use resample::{Filter, resample};
pub use rng::SeedTree;
pub use roles::{CodePyramid, ScaleModel, paint_all, restrict};
pub use scales::{ScaleSchedule, ScaleSize, ScheduleError};
pub use schedule_sampler::{SidePool, TrainingSchedule};
