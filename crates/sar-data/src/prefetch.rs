//! A function of consecutive positions, computed ahead on threads, its results taken in order.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

/// The results of `f(start)`, `f(start + 1)`, ...: at most a window of them is begun and not yet
/// taken, and which thread computes which has no influence on any. Dropped, it ends its threads.
pub struct Prefetch<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// A position may be begun, or no more will be.
    room: Condvar,
    /// The first result that is not yet taken is there.
    ready: Condvar,
}

struct State<T> {
    /// The first position whose result is not yet taken.
    first: u64,
    /// The results of the positions from `first` on that are begun; nothing until they are there.
    begun: VecDeque<Option<thread::Result<T>>>,
    end: u64,
    is_closed: bool,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Begins to compute `f` at `positions` on a number of threads.
    ///
    /// # Panics
    /// If there is no thread or no window, or the system cannot start a thread.
    pub fn new(
        positions: Range<u64>,
        threads: usize,
        window: usize,
        f: impl Fn(u64) -> T + Send + Sync + 'static,
    ) -> Self {
        assert!(threads > 0 && window > 0, "{threads} threads, a window of {window}");
        let Range { start, end } = positions;
        let begun = VecDeque::with_capacity(window);
        let state = State { first: start, begun, end: end.max(start), is_closed: false };
        let (room, ready) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { state: Mutex::new(state), room, ready });
        let f = Arc::new(f);
        let work = || {
            let (shared, f) = (Arc::clone(&shared), Arc::clone(&f));
            move || shared.work(window, &*f)
        };
        let threads = (0..threads.min(window)).map(|_| thread::spawn(work())).collect();
        Self { shared, threads }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    fn work(&self, window: usize, f: &impl Fn(u64) -> T) {
        while let Some(position) = self.begin(window) {
            let result = catch_unwind(AssertUnwindSafe(|| f(position)));
            let mut state = self.lock();
            // Nothing after it is taken before it is.
            let place = (position - state.first) as usize;
            state.begun[place] = Some(result);
            if place == 0 {
                self.ready.notify_one();
            }
        }
    }

    /// The next position, as soon as there is room for it.
    fn begin(&self, window: usize) -> Option<u64> {
        let mut state = self.lock();
        loop {
            let next = state.first + state.begun.len() as u64;
            if state.is_closed || next == state.end {
                return None;
            }
            if state.begun.len() < window {
                state.begun.push_back(None);
                return Some(next);
            }
            state = self.room.wait(state).expect("nothing panics while it holds this lock");
        }
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = T;

    /// The next result.
    ///
    /// # Panics
    /// If `f` did at this position.
    fn next(&mut self) -> Option<T> {
        let mut state = self.shared.lock();
        if state.first == state.end {
            return None;
        }
        loop {
            if let Some(result) = state.begun.front_mut().and_then(Option::take) {
                state.begun.pop_front();
                state.first += 1;
                drop(state);
                self.shared.room.notify_one();
                return Some(result.unwrap_or_else(|panic| resume_unwind(panic)));
            }
            state = self.shared.ready.wait(state).expect("nothing panics while it holds this lock");
        }
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.room.notify_all();
        for thread in self.threads.drain(..) {
            // It catches what panics in it.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_more_than_the_window_is_begun() {
        let highest = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&highest);
        let mut ahead = Prefetch::new(10..1000, 4, 6, move |position| {
            seen.fetch_max(position, Ordering::SeqCst);
            position
        });
        for taken in 0..50 {
            assert_eq!(ahead.next(), Some(10 + taken));
            // Positions up to the last taken one and six more.
            assert!(highest.load(Ordering::SeqCst) <= 10 + taken + 6);
        }
        while highest.load(Ordering::SeqCst) < 10 + 49 + 6 {
            thread::yield_now();
        }
    }

    #[test]
    fn dropping_ends_the_threads() {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let alive = Arc::new(AtomicUsize::new(1));
        let counted = Counted(Arc::clone(&alive));
        let mut ahead = Prefetch::new(0..u64::MAX, 3, 5, move |position| {
            let _ = &counted;
            position
        });
        ahead.next();
        drop(ahead);
        assert_eq!(alive.load(Ordering::SeqCst), 0, "the function is gone, so its threads are");
    }

    #[test]
    fn a_panic_reaches_who_takes_its_result() {
        let mut ahead = Prefetch::new(0..10, 2, 4, |position| {
            assert!(position != 3, "three");
            position
        });
        assert_eq!([ahead.next(), ahead.next(), ahead.next()], [Some(0), Some(1), Some(2)]);
        let panic = catch_unwind(AssertUnwindSafe(|| ahead.next())).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"three"));
        assert_eq!(ahead.next(), Some(4));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn results_come_in_order(
            start in 0u64..1000, n in 0u64..60, threads in 1usize..7, window in 1usize..12, seed: u64,
        ) {
            let ahead = Prefetch::new(start..start + n, threads, window, move |position| {
                let wait = position.wrapping_mul(seed | 1) % 50;
                thread::sleep(Duration::from_micros(wait));
                position
            });
            prop_assert_eq!(ahead.collect::<Vec<_>>(), (start..start + n).collect::<Vec<_>>());
        }
    }
}
