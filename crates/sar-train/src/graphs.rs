//! A guard of the process's autodiff graphs.
//!
//! At the end of a backward pass burn-autodiff 0.21 frees what it takes for orphans in every graph of
//! the process, and may take a node of a graph that another thread is still building for one (burn
//! issue 5573). Its gradient would be lost without a word. Therefore no graph is built while a backward
//! pass runs: whoever builds holds [`building`], whoever differentiates holds [`differentiating`].

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static GRAPHS: RwLock<()> = RwLock::new(());

/// Held while graphs are built; any number of threads may.
pub fn building() -> RwLockReadGuard<'static, ()> {
    // A panic while somebody held it says nothing of the graphs of others.
    GRAPHS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held while finished graphs are differentiated, by one caller at a time, which may differentiate
/// several graphs side by side.
pub fn differentiating() -> RwLockWriteGuard<'static, ()> {
    GRAPHS.write().unwrap_or_else(PoisonError::into_inner)
}
