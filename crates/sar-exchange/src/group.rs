//! The ranks of a training as each of them sees them.

use std::fmt;
use std::sync::Arc;

use crate::{ExchangeError, Share};

/// A way for ranks to exchange messages. All of them make the same calls in the same order.
pub trait Exchange: fmt::Debug + Send + Sync {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn ranks(&self) -> usize;

    /// Gives each rank a message, `messages[r]` to rank r, and takes one from each.
    ///
    /// # Errors
    /// If a rank has failed, or was waited for in vain.
    fn all_to_all(&self, messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, ExchangeError>;

    /// Takes part in the next exchange of all others with the word that this rank cannot go on; it is the
    /// last that it takes part in.
    fn fail(&self, why: &str);

    /// Tells the others, who may be waiting, that this rank is at work.
    fn alive(&self) {}
}

/// The ranks of a training; clones are the same.
#[derive(Clone, Debug)]
pub struct Group(Arc<dyn Exchange>);

/// One rank that exchanges nothing.
#[derive(Debug)]
struct Alone;

impl Exchange for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn all_to_all(&self, messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        Ok(messages.iter().map(|message| message.to_vec()).collect())
    }

    fn fail(&self, _: &str) {}
}

impl Group {
    /// A rank among others.
    pub fn new(exchange: impl Exchange + 'static) -> Self {
        Self(Arc::new(exchange))
    }

    /// One process for everything.
    pub fn alone() -> Self {
        Self::new(Alone)
    }

    /// Whether there is but one rank: nothing needs to be exchanged.
    pub fn is_alone(&self) -> bool {
        self.ranks() == 1
    }

    /// Whether this is the rank that writes and speaks for all: rank 0.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// The number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.0.rank()
    }

    /// How many there are.
    pub fn ranks(&self) -> usize {
        self.0.ranks()
    }

    /// The micro-batches of a step that this rank computes, of so many.
    pub fn share(&self, micro_batches: usize) -> Share {
        Share::of_rank(micro_batches, self.rank(), self.ranks())
    }

    /// Gives each rank a message, and takes one from each.
    ///
    /// # Errors
    /// If a rank has failed, or was waited for in vain.
    pub fn all_to_all(&self, messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        assert_eq!(messages.len(), self.ranks(), "a message for each rank");
        self.0.all_to_all(messages)
    }

    /// Gives all ranks the same message, and takes one from each.
    ///
    /// # Errors
    /// As [`all_to_all`](Self::all_to_all).
    pub fn all_gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        self.all_to_all(&vec![message; self.ranks()])
    }

    /// What one rank has, for all of them.
    ///
    /// # Errors
    /// As [`all_to_all`](Self::all_to_all); on that rank, also if it cannot be made.
    pub fn from_rank<E: From<ExchangeError>>(
        &self,
        rank: usize,
        make: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let message = if self.rank() == rank { make()? } else { Vec::new() };
        if self.is_alone() {
            return Ok(message);
        }
        let mut messages = self.all_gather(&message)?;
        Ok(messages.swap_remove(rank))
    }

    /// Whether any rank says so, answer by answer.
    ///
    /// # Errors
    /// As [`all_to_all`](Self::all_to_all).
    pub fn any<const N: usize>(&self, answers: [bool; N]) -> Result<[bool; N], ExchangeError> {
        if self.is_alone() {
            return Ok(answers);
        }
        let mut any = [false; N];
        for (rank, theirs) in self.all_gather(&answers.map(u8::from))?.iter().enumerate() {
            if theirs.len() != N {
                return Err(ExchangeError::Unexpected { rank });
            }
            any.iter_mut().zip(theirs).for_each(|(any, theirs)| *any |= *theirs != 0);
        }
        Ok(any)
    }

    /// The sums of numbers over all ranks, place by place.
    ///
    /// # Errors
    /// As [`all_to_all`](Self::all_to_all).
    pub fn sums(&self, numbers: &mut [i64]) -> Result<(), ExchangeError> {
        if self.is_alone() {
            return Ok(());
        }
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let all = self.all_gather(&bytes)?;
        numbers.fill(0);
        for (rank, theirs) in all.iter().enumerate() {
            if theirs.len() != bytes.len() {
                return Err(ExchangeError::Unexpected { rank });
            }
            for (sum, n) in numbers.iter_mut().zip(theirs.as_chunks::<8>().0) {
                *sum += i64::from_le_bytes(*n);
            }
        }
        Ok(())
    }

    /// Says to all others, at their next exchange, that this rank cannot go on.
    pub fn fail(&self, why: &str) {
        self.0.fail(why);
    }

    /// Tells the others, who may be waiting, that this rank is at work.
    pub fn alive(&self) {
        self.0.alive();
    }
}
