//! A backend that computes as flex does, and lies where a test tells it to.

mod delegate;
mod lie;

pub(crate) use lie::{Lie, telling};

/// Flex, with [`Lie`]s.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Liar;
