//! Work side by side, each part with threads of its own.
//!
//! Operators on the CPU are cut into pieces for all threads of a pool. Where parts of a step run side by side and share
//! one pool, each operator of each part wakes threads and waits for them, though the other part keeps them busy: a
//! quarter of a small step is spent so. A part that has its share of the threads to itself, one where there are as many parts as
//! cores, does its pieces where it is.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use rayon::{ThreadPool, ThreadPoolBuilder, current_num_threads};

thread_local! {
    /// The pools for so many parts, of this thread alone: a pool never has the work of two callers, one of which could wait
    /// for a lock that the other holds below it on the stack.
    static POOLS: RefCell<HashMap<usize, Rc<[ThreadPool]>>> = RefCell::default();
}

/// As many pools as there are parts, which share the threads of the pool of the caller.
fn pools(parts: usize) -> Rc<[ThreadPool]> {
    let pool = |part| {
        let share = (current_num_threads() / parts).max(1);
        let name = move |thread| format!("part {part} of {parts}, {thread}");
        let built = ThreadPoolBuilder::new().num_threads(share).thread_name(name).build();
        built.unwrap_or_else(|e| panic!("threads for {parts} parts of a step: {e}"))
    };
    let made = || (0..parts).map(pool).collect();
    POOLS.with_borrow_mut(|pools| Rc::clone(pools.entry(parts).or_insert_with(made)))
}

/// Applies `work` to every item, side by side.
///
/// # Panics
/// If `work` does, or the system has no threads left.
pub(crate) fn side_by_side<I: Send, T: Send>(
    items: Vec<I>,
    work: &(impl Fn(I) -> T + Sync),
) -> Vec<T> {
    if items.len() < 2 {
        return items.into_iter().map(work).collect();
    }
    let pools = pools(items.len());
    std::thread::scope(|scope| {
        let started: Vec<_> = items
            .into_iter()
            .zip(pools.iter())
            .map(|(item, pool)| scope.spawn(move || pool.install(|| work(item))))
            .collect();
        let result = |part: std::thread::ScopedJoinHandle<'_, T>| {
            part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        started.into_iter().map(result).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use rayon::prelude::*;

    use super::*;

    /// Each part runs while all others do, and its pieces on its own threads, of which there are its share.
    #[test]
    fn parts_have_threads_of_their_own() {
        for (threads, parts, share) in [(4, 2, 2), (2, 3, 1), (3, 1, 3)] {
            let caller = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let met = Barrier::new(parts);
            let work = |part: usize| {
                met.wait();
                let pieces = (0..64).into_par_iter().map(|_| thread::current().id());
                (part, current_num_threads(), pieces.collect::<Vec<_>>())
            };
            let twice =
                caller.install(|| [(); 2].map(|()| side_by_side((0..parts).collect(), &work)));
            for results in &twice {
                for (part, (number, threads, pieces)) in results.iter().enumerate() {
                    assert_eq!((*number, *threads), (part, share));
                    let others = results.iter().filter(|(other, ..)| *other != part);
                    for (.., theirs) in others {
                        assert!(pieces.iter().all(|thread| !theirs.contains(thread)));
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "the second one")]
    fn a_panic_of_a_part_is_one_of_the_caller() {
        side_by_side(vec![0, 1], &|part| assert_eq!(part, 0, "the second one"));
    }
}
