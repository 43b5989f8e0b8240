//! Ranks that are threads of one process.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Exchange, ExchangeError, Group};

/// So many ranks, one for each thread; who is silent for longer than `deadline` while others wait is given up.
///
/// # Panics
/// If there is none.
pub fn threads(ranks: usize, deadline: Duration) -> Vec<Group> {
    assert!(ranks > 0, "no ranks");
    let state = State {
        boxes: (0..ranks * ranks).map(|_| VecDeque::new()).collect(),
        alive: vec![Instant::now(); ranks],
    };
    let hub = Arc::new(Hub { ranks, deadline, state: Mutex::new(state), changed: Condvar::new() });
    (0..ranks).map(|rank| Group::new(Thread { rank, hub: Arc::clone(&hub) })).collect()
}

#[derive(Debug)]
struct Thread {
    rank: usize,
    hub: Arc<Hub>,
}

#[derive(Debug)]
struct Hub {
    ranks: usize,
    deadline: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

/// What a rank sent, or why it cannot.
type Message = Result<Vec<u8>, String>;

#[derive(Debug)]
struct State {
    /// Messages that nobody took yet; those from a to b in box a ranks + b.
    boxes: Vec<VecDeque<Message>>,
    /// The last sign of life of each rank.
    alive: Vec<Instant>,
}

impl Thread {
    fn state(&self) -> MutexGuard<'_, State> {
        self.hub.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, messages: impl Iterator<Item = Message>) {
        let mut state = self.state();
        for (to, message) in messages.enumerate() {
            state.boxes[self.rank * self.hub.ranks + to].push_back(message);
        }
        state.alive[self.rank] = Instant::now();
        self.hub.changed.notify_all();
    }

    fn receive(&self) -> Result<Vec<Message>, ExchangeError> {
        let Hub { ranks, deadline, changed, .. } = &*self.hub;
        let since = Instant::now();
        let mut state = self.state();
        let mut messages = Vec::with_capacity(*ranks);
        for from in 0..*ranks {
            messages.push(loop {
                if let Some(message) = state.boxes[from * ranks + self.rank].pop_front() {
                    break message;
                }
                let silent = state.alive[from].max(since).elapsed();
                let Some(left) = deadline.checked_sub(silent).filter(|left| !left.is_zero()) else {
                    return Err(ExchangeError::Silent { rank: from, seconds: deadline.as_secs() });
                };
                state = changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            });
        }
        Ok(messages)
    }
}

impl Exchange for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.hub.ranks
    }

    fn all_to_all(&self, messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        self.send(messages.iter().map(|message| Ok(message.to_vec())));
        let of_rank = |(rank, message): (usize, Message)| {
            message.map_err(|why| ExchangeError::Failed { rank, why })
        };
        self.receive()?.into_iter().enumerate().map(of_rank).collect()
    }

    fn fail(&self, why: &str) {
        self.send((0..self.hub.ranks).map(|_| Err(why.to_owned())));
        // So that what others sent meanwhile is not taken for what comes later.
        let _ = self.receive();
    }

    fn alive(&self) {
        self.state().alive[self.rank] = Instant::now();
        self.hub.changed.notify_all();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What each of three ranks returns.
    pub(crate) fn on_three<T: Send>(
        deadline: Duration,
        work: impl Fn(Group) -> T + Sync + Send,
    ) -> Vec<T> {
        let ranks = threads(3, deadline);
        std::thread::scope(|scope| {
            let work = &work;
            let running: Vec<_> =
                ranks.into_iter().map(|group| scope.spawn(move || work(group))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    pub(crate) const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn messages_come_from_whom_they_are() {
        let all = on_three(LONG, |group| {
            let me = group.rank() as u8;
            let messages: Vec<Vec<u8>> = (0..3).map(|to| vec![me, to]).collect();
            let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
            let mut numbers = [i64::from(me), -5];
            group.sums(&mut numbers).unwrap();
            let first = group.from_rank(2, || Ok::<_, ExchangeError>(vec![me; 2])).unwrap();
            assert_eq!((numbers, first), ([3, -15], vec![2, 2]));
            assert_eq!(group.any([me == 1, false]).unwrap(), [true, false]);
            group.all_to_all(&messages).unwrap()
        });
        for (to, received) in all.iter().enumerate() {
            assert_eq!(*received, [0, 1, 2].map(|from| vec![from, to as u8]));
        }
    }

    #[test]
    fn who_fails_is_heard_of_by_all() {
        let all = on_three(LONG, |group| {
            group.all_gather(&[]).unwrap();
            match group.rank() {
                1 => {
                    group.fail("no space left on device");
                    None
                }
                _ => Some(group.all_gather(&[]).unwrap_err().to_string()),
            }
        });
        let heard = Some("rank 1: no space left on device".to_owned());
        assert_eq!(all, [heard.clone(), None, heard]);
    }

    #[test]
    fn who_is_silent_is_given_up_and_who_works_is_not() {
        let deadline = Duration::from_millis(400);
        let all = on_three(deadline, |group| match group.rank() {
            2 => None,
            1 => {
                // Longer than the deadline, with signs of life.
                for _ in 0..6 {
                    std::thread::sleep(deadline / 4);
                    group.alive();
                }
                Some(group.all_gather(&[]).unwrap_err())
            }
            _ => Some(group.all_gather(&[]).unwrap_err()),
        });
        let silent = Some(ExchangeError::Silent { rank: 2, seconds: 0 });
        assert_eq!(all, [silent.clone(), silent, None]);
    }
}
