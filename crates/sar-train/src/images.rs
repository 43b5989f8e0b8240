//! The images of a run.

pub(crate) use sar_data::{ImageBatch, Images};
