//! Ranks that exchange short messages in one way, and long ones in another.
//!
//! ```text
//! all ranks      the lengths of all messages, and those that are short       by the group
//! all ranks      the long ones, where any rank gives one                     by the other way
//! all ranks      whether theirs have left and arrived, or why not            by the group
//! ```
//! So the other way may know nothing of ranks that fail, and where it breaks all hear of it in the same call.

use std::fmt;
use std::ops::Range;

use crate::{Exchange, ExchangeError, Group};

/// A way for long messages. Where any rank has one all are asked, each for its part.
pub(crate) trait Carry: fmt::Debug + Send + Sync {
    /// Gives each rank its body, and takes one of so many bytes from each; where there are none nothing is carried, as
    /// between a rank and itself. While it waits for others it calls `waiting`, many times within a deadline.
    fn carry(
        &self,
        bodies: &[&[u8]],
        lengths: &[usize],
        waiting: &dyn Fn(),
    ) -> Result<Vec<Vec<u8>>, Broken>;
}

/// Why a rank could not do its part, in its own words.
#[derive(Debug)]
pub(crate) enum Broken {
    Here(String),
    /// It waited for others, one of which may know better.
    InVain(String),
}

const MADE: u8 = 0;
const BROKEN: u8 = 1;
const IN_VAIN: u8 = 2;

/// What this rank has made, and what all of them say with theirs; where any could not, the same error for all.
pub(crate) fn all_made<T>(
    group: &Group,
    mine: Result<(T, Vec<u8>), Broken>,
) -> Result<(T, Vec<Vec<u8>>), ExchangeError> {
    let (made, kind, said) = match mine {
        Ok((made, said)) => (Some(made), MADE, said),
        Err(Broken::Here(why)) => (None, BROKEN, why.into_bytes()),
        Err(Broken::InVain(why)) => (None, IN_VAIN, why.into_bytes()),
    };
    let message = [&[kind][..], &said[..]].concat();
    let (mut kinds, mut all) = (Vec::new(), Vec::new());
    for (rank, message) in group.all_gather(&message)?.iter().enumerate() {
        let known = message.split_first().filter(|(kind, _)| **kind <= IN_VAIN);
        let (kind, said) = known.ok_or(ExchangeError::Unexpected { rank })?;
        kinds.push(*kind);
        all.push(said.to_vec());
    }
    for kind in [BROKEN, IN_VAIN] {
        if let Some(rank) = kinds.iter().position(|theirs| *theirs == kind) {
            let why = String::from_utf8_lossy(&all[rank]).into_owned();
            return Err(ExchangeError::Failed { rank, why });
        }
    }
    Ok((made.expect("who has made nothing has said why"), all))
}

/// Where bodies lie in one buffer, and its bytes; a slice that is there several times lies there once.
pub(crate) fn places(bodies: &[&[u8]]) -> (Vec<Range<usize>>, usize) {
    let mut places: Vec<Range<usize>> = Vec::with_capacity(bodies.len());
    let mut end = 0;
    for (i, body) in bodies.iter().enumerate() {
        let same = bodies[..i].iter().position(|before| std::ptr::eq(*before, *body));
        let place = same.map_or(end..end + body.len(), |same| places[same].clone());
        end = end.max(place.end);
        places.push(place);
    }
    (places, end)
}

/// Before each message: whether its rank gives a long one to anybody, and the bytes of this one.
const HEAD: usize = 1 + size_of::<u64>();

#[derive(Debug)]
pub(crate) struct Split<C> {
    short: Group,
    long: C,
    /// Bytes of a short message at most.
    most: usize,
}

impl<C: Carry + 'static> Split<C> {
    /// The same ranks, with another way for messages of more than so many bytes.
    pub(crate) fn group(short: Group, long: C, most: usize) -> Group {
        Group::new(Self { short, long, most })
    }
}

impl<C: Carry> Exchange for Split<C> {
    fn rank(&self) -> usize {
        self.short.rank()
    }

    fn ranks(&self) -> usize {
        self.short.ranks()
    }

    fn all_to_all(&self, messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let (me, ranks) = (self.rank(), self.ranks());
        let is_long = |rank: usize| rank != me && messages[rank].len() > self.most;
        let gives = (0..ranks).any(is_long);
        let head = |rank: usize| {
            let message = messages[rank];
            let mut head = vec![u8::from(gives)];
            head.extend((message.len() as u64).to_le_bytes());
            // A rank's own needs no way at all.
            head.extend(if rank == me || is_long(rank) { &[][..] } else { message });
            head
        };
        let heads: Vec<Vec<u8>> = (0..ranks).map(head).collect();
        let heads: Vec<&[u8]> = heads.iter().map(Vec::as_slice).collect();
        let mut received = self.short.all_to_all(&heads)?;
        let mut any = false;
        let mut lengths = vec![0; ranks];
        for (rank, message) in received.iter_mut().enumerate() {
            let unexpected = ExchangeError::Unexpected { rank };
            let Some((head, rest)) = message.split_first_chunk::<HEAD>() else {
                return Err(unexpected);
            };
            let [gives, length @ ..] = *head;
            any |= gives != 0;
            let length = u64::from_le_bytes(length) as usize;
            if rank == me {
                *message = messages[me].to_vec();
                continue;
            }
            match (rest.len(), length > self.most) {
                (0, true) => lengths[rank] = length,
                (there, false) if there == length => {}
                _ => return Err(unexpected),
            }
            message.drain(..HEAD);
        }
        if !any {
            return Ok(received);
        }
        let body = |rank: usize| if is_long(rank) { messages[rank] } else { &[] };
        let bodies: Vec<&[u8]> = (0..ranks).map(body).collect();
        let carried = self.long.carry(&bodies, &lengths, &|| self.short.alive());
        let (bodies, _) = all_made(&self.short, carried.map(|bodies| (bodies, Vec::new())))?;
        for (rank, body) in bodies.into_iter().enumerate().filter(|(rank, _)| lengths[*rank] > 0) {
            received[rank] = body;
        }
        Ok(received)
    }

    fn fail(&self, why: &str) {
        self.short.fail(why);
    }

    fn alive(&self) {
        self.short.alive();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;
    use crate::threads;
    use crate::threads::tests::{LONG, on_three};

    /// Of each call the bytes for each rank, and those from each.
    type Calls = Arc<Mutex<Vec<[Vec<usize>; 2]>>>;

    /// Other threads, and what they were asked to carry.
    #[derive(Debug)]
    struct Noting(Group, Calls);

    impl Carry for Noting {
        fn carry(
            &self,
            bodies: &[&[u8]],
            lengths: &[usize],
            _: &dyn Fn(),
        ) -> Result<Vec<Vec<u8>>, Broken> {
            let given = bodies.iter().map(|body| body.len()).collect();
            self.1.lock().unwrap().push([given, lengths.to_vec()]);
            Ok(self.0.all_to_all(bodies).unwrap())
        }
    }

    #[test]
    fn long_messages_go_their_own_way() {
        const BYTES: [[usize; 3]; 3] = [[9, 4, 5], [0, 9, 4], [7, 3, 9]];
        let message = |from: usize, to: usize| vec![(10 * from + to) as u8; BYTES[from][to]];
        let others = threads(3, LONG);
        let all = on_three(LONG, |group| {
            let me = group.rank();
            let calls = Calls::default();
            let noting = Noting(others[me].clone(), Arc::clone(&calls));
            let group = Split::group(group, noting, 4);
            assert_eq!((group.rank(), group.ranks()), (me, 3));
            // Four bytes are short, five are long.
            let short = group.all_gather(&[me as u8; 4]).unwrap();
            assert_eq!(short, [[0; 4], [1; 4], [2; 4]]);
            let messages: Vec<Vec<u8>> = (0..3).map(|to| message(me, to)).collect();
            let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
            let received = group.all_to_all(&messages).unwrap();
            assert_eq!(received, [0, 1, 2].map(|from| message(from, me)));
            let calls = calls.lock().unwrap();
            calls.clone()
        });
        assert_eq!(all[0], [[vec![0, 0, 5], vec![0, 0, 7]]]);
        assert_eq!(all[1], [[vec![0, 0, 0], vec![0, 0, 0]]]);
        assert_eq!(all[2], [[vec![7, 0, 0], vec![5, 0, 0]]]);
    }

    /// A way that breaks for rank 1, of which 0 notices that it waits and 2 nothing.
    #[derive(Debug)]
    struct Breaking(usize);

    impl Carry for Breaking {
        fn carry(
            &self,
            _: &[&[u8]],
            lengths: &[usize],
            _: &dyn Fn(),
        ) -> Result<Vec<Vec<u8>>, Broken> {
            match self.0 {
                0 => Err(Broken::InVain("waited".into())),
                1 => Err(Broken::Here("the cable is out".into())),
                _ => Ok(lengths.iter().map(|n| vec![0; *n]).collect()),
            }
        }
    }

    fn on_breaking<T: Send>(work: impl Fn(Group) -> T + Send + Sync) -> Vec<T> {
        on_three(LONG, |group| {
            let breaking = Breaking(group.rank());
            work(Split::group(group, breaking, 4))
        })
    }

    #[test]
    fn where_the_way_breaks_all_say_the_same() {
        let all = on_breaking(|group| group.all_gather(&[7; 5]).unwrap_err().to_string());
        assert_eq!(all, ["rank 1: the cable is out"; 3]);
    }

    #[test]
    fn who_fails_is_heard_of_before_anything_is_carried() {
        let all = on_breaking(|group| match group.rank() {
            2 => {
                group.fail("no space left on device");
                None
            }
            _ => Some(group.all_gather(&[7; 5]).unwrap_err().to_string()),
        });
        let heard = Some("rank 2: no space left on device".to_owned());
        assert_eq!(all, [heard.clone(), heard, None]);
    }

    const DEADLINE: Duration = Duration::from_millis(400);

    /// A way that takes rank 1 longer than the deadline.
    #[derive(Debug)]
    struct Slow(usize);

    impl Carry for Slow {
        fn carry(
            &self,
            _: &[&[u8]],
            lengths: &[usize],
            waiting: &dyn Fn(),
        ) -> Result<Vec<Vec<u8>>, Broken> {
            let naps = if self.0 == 1 { 6 } else { 0 };
            for _ in 0..naps {
                std::thread::sleep(DEADLINE / 4);
                waiting();
            }
            Ok(lengths.iter().map(|n| vec![self.0 as u8; *n]).collect())
        }
    }

    #[test]
    fn who_waits_for_the_way_is_not_silent() {
        let all = on_three(DEADLINE, |group| {
            let slow = Slow(group.rank());
            Split::group(group, slow, 1).all_gather(&[9; 2])
        });
        // Its own message takes no way, and so is as it was.
        assert_eq!(all[1], Ok(vec![vec![1, 1], vec![9, 9], vec![1, 1]]));
        assert!(all.iter().all(Result::is_ok), "{all:?}");
    }

    #[test]
    fn a_body_for_several_ranks_lies_in_the_buffer_once() {
        let (weights, other) = ([1, 2, 3], [4, 5]);
        let (places, bytes) = places(&[&weights, &[], &weights, &other]);
        assert_eq!((places, bytes), (vec![0..3, 3..3, 0..3, 3..5], 5));
    }
}
