//! Ranks that are processes, on one machine or many, which an MPI launcher started.
//!
//! Nothing here blocks: every message is polled for against a deadline, and a process that waits in vain ends the
//! whole job with one line. All calls have to come from the thread that called [`start`].

use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use mpi::environment::{Universe, processor_name};
use mpi::request::{self, LocalScope, Request, StaticScope};
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::{Destination, Source};
use mpi::{Rank, Tag};

use crate::{Exchange, ExchangeError, Group};

/// What the job ends with when a rank was waited for in vain.
const GIVEN_UP: i32 = 2;

/// Every message begins with so many bytes: its length, and as much of it as fits.
const HEAD: usize = 1024;
const LENGTH: usize = 8;
/// Set in the length of the reason of a rank that failed.
const FAILED: u64 = 1 << 63;
/// Bytes of an MPI message at most; its counts have 32 bits.
const MOST: usize = 1 << 30;

const HEADS: Tag = 1;
const BODIES: Tag = 2;
const ALIVE: Tag = 3;

static SIGN: &[u8] = &[0];

/// A sign of life that has not arrived yet, at which rank.
type Sign = (usize, Request<'static, [u8], StaticScope>);

thread_local! {
    /// A rank that has stopped may never take one: nobody waits for it.
    static UNDER_WAY: RefCell<Vec<Sign>> = const { RefCell::new(Vec::new()) };
}

/// Ranks to which a sign of life is still under way.
fn under_way(signs: &mut Vec<Sign>) -> Vec<usize> {
    let mut still = Vec::with_capacity(signs.len());
    for (rank, sign) in signs.drain(..) {
        still.extend(sign.test().err().map(|sign| (rank, sign)));
    }
    *signs = still;
    signs.iter().map(|(rank, _)| *rank).collect()
}

/// Ends the whole job, whatever has become of the launcher.
fn end_all(world: &SimpleCommunicator) -> ! {
    end_anyway();
    world.abort(GIVEN_UP)
}

/// Ends this process soon: what ends it in order may wait for a launcher that is out of reach, too.
fn end_anyway() {
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(5));
        std::process::abort();
    });
}

/// The engine, as long as this lives: dropped, it waits for all ranks to drop theirs.
pub struct Engine {
    universe: Option<Universe>,
    ranks_here: usize,
}

/// Starts the engine, once for each process.
///
/// # Errors
/// If it was started before.
pub fn start(deadline: Duration) -> Result<(Engine, Group), String> {
    let (is_up, up) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if up.recv_timeout(deadline) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("error: not all ranks have started within {} s", deadline.as_secs());
            // By exit, of which the launcher hears; where ranks end by signals that early, Open MPI's may wait for ever.
            end_anyway();
            std::process::exit(GIVEN_UP);
        }
    });
    let universe = mpi::initialize().ok_or("MPI was started before")?;
    let world = universe.world();
    let place = |n: Rank| n as usize;
    let (rank, ranks) = (place(world.rank()), place(world.size()));
    let ranks_here = place(world.split_shared(world.rank()).size());
    let _ = is_up.send(());
    let now = Instant::now();
    let signs = Mutex::new(Signs { sent: now, seen: vec![now; ranks] });
    let group = Group::new(Process { rank, ranks, deadline, signs });
    Ok((Engine { universe: Some(universe), ranks_here }, group))
}

impl Engine {
    /// The ranks that share this machine.
    pub fn ranks_here(&self) -> usize {
        self.ranks_here
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Others would be waited for in vain: the launcher is to see that something is wrong.
            std::process::exit(101);
        }
        // All ranks have come to their end, and take what is under way.
        let since = Instant::now();
        while UNDER_WAY.with_borrow_mut(|signs| !under_way(signs).is_empty()) {
            if since.elapsed() > Duration::from_secs(10) {
                std::process::abort();
            }
            std::thread::yield_now();
        }
        drop(self.universe.take());
    }
}

#[derive(Debug)]
struct Process {
    rank: usize,
    ranks: usize,
    deadline: Duration,
    signs: Mutex<Signs>,
}

/// Signs of life: when the last was sent, and when the last of each rank was seen.
#[derive(Debug)]
struct Signs {
    sent: Instant,
    seen: Vec<Instant>,
}

impl Process {
    /// Sends and receives until everything has arrived; what is of no bytes is not sent.
    fn swap<'m>(
        &self,
        sent: &'m [&'m [u8]],
        received: &'m mut [Vec<u8>],
        tag: Tag,
        waits_for: &str,
    ) {
        let world = SimpleCommunicator::world();
        request::scope(|scope| {
            let mut open: Vec<(usize, Request<'m, [u8], &LocalScope<'m>>)> = Vec::new();
            let others = |rank: &usize| *rank != self.rank;
            for (rank, buffer) in received.iter_mut().enumerate().filter(|(rank, _)| others(rank)) {
                let other = world.process_at_rank(rank as Rank);
                for part in buffer.chunks_mut(MOST) {
                    let request = other.immediate_receive_into_with_tag(scope, part, tag);
                    open.push((rank, request));
                }
            }
            for (rank, message) in sent.iter().enumerate().filter(|(rank, _)| others(rank)) {
                let other = world.process_at_rank(rank as Rank);
                for part in message.chunks(MOST) {
                    open.push((rank, other.immediate_send_with_tag(scope, part, tag)));
                }
            }
            let since = Instant::now();
            for polls in 0u64.. {
                let mut still = Vec::with_capacity(open.len());
                for (rank, request) in open {
                    still.extend(request.test().err().map(|request| (rank, request)));
                }
                open = still;
                if open.is_empty() {
                    break;
                }
                // All are there when bodies come, which take many polls each. For heads a rank may be at work: the
                // longer it takes, the less a microsecond matters, and the core may be that rank's.
                match polls < 64 || (tag == BODIES && since.elapsed() < Duration::from_secs(1)) {
                    true => std::thread::yield_now(),
                    false => std::thread::sleep(Duration::from_micros((polls * 2).min(500))),
                }
                if polls.is_multiple_of(64) {
                    self.alive();
                    let waited_for = open.iter().map(|(rank, _)| *rank);
                    self.check(&world, since, waited_for, waits_for);
                }
            }
        });
    }

    /// Ends everything if a rank that is waited for gave no sign of life for too long.
    fn check(
        &self,
        world: &SimpleCommunicator,
        since: Instant,
        waited_for: impl Iterator<Item = usize>,
        waits_for: &str,
    ) {
        let mut signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(status) = world.any_process().immediate_probe_with_tag(ALIVE) {
            let other = world.process_at_rank(status.source_rank());
            other.receive_into_with_tag(&mut [0u8][..], ALIVE);
            signs.seen[status.source_rank() as usize] = Instant::now();
        }
        // One of them is to speak, not all.
        let patience = self.deadline + Duration::from_secs(self.rank.min(10) as u64);
        let is_silent = |rank: &usize| signs.seen[*rank].max(since).elapsed() > patience;
        if let Some(rank) = waited_for.into_iter().find(is_silent) {
            let seconds = self.deadline.as_secs();
            let error = ExchangeError::Silent { rank, seconds };
            let host = processor_name().unwrap_or_default();
            eprintln!("error: {error}; rank {} on {host} {waits_for}", self.rank);
            end_all(world)
        }
    }

    /// The heads of all ranks' messages, for `heads` of ours.
    fn heads(&self, heads: &[Vec<u8>], waits_for: &str) -> Vec<Vec<u8>> {
        let mut theirs = vec![vec![0; HEAD]; self.ranks];
        theirs[self.rank].clone_from(&heads[self.rank]);
        let heads: Vec<&[u8]> = heads.iter().map(Vec::as_slice).collect();
        self.swap(&heads, &mut theirs, HEADS, waits_for);
        theirs
    }
}

fn head(length: u64, message: &[u8]) -> Vec<u8> {
    let mut head = length.to_le_bytes().to_vec();
    head.extend(&message[..message.len().min(HEAD - LENGTH)]);
    head.resize(HEAD, 0);
    head
}

fn length_of(head: &[u8]) -> u64 {
    let length = head.first_chunk::<LENGTH>().expect("a head");
    u64::from_le_bytes(*length)
}

/// How much of a message does not fit into its head.
fn body(message: &[u8]) -> &[u8] {
    &message[message.len().min(HEAD - LENGTH)..]
}

impl Exchange for Process {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn all_to_all(&self, messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let waits_for = "waited for it";
        let heads: Vec<Vec<u8>> =
            messages.iter().map(|message| head(message.len() as u64, message)).collect();
        let heads = self.heads(&heads, waits_for);
        let failed = |head: &Vec<u8>| length_of(head) & FAILED != 0;
        if let Some(rank) = heads.iter().position(failed) {
            let length = (length_of(&heads[rank]) & !FAILED) as usize;
            let why = String::from_utf8_lossy(&heads[rank][LENGTH..][..length]).into_owned();
            return Err(ExchangeError::Failed { rank, why });
        }
        let in_head = |length: usize| length.min(HEAD - LENGTH);
        let length = |head: &Vec<u8>| length_of(head) as usize;
        let mut bodies: Vec<Vec<u8>> = Vec::with_capacity(self.ranks);
        for (rank, head) in heads.iter().enumerate() {
            // Ours needs no way.
            let more = if rank == self.rank { 0 } else { length(head) - in_head(length(head)) };
            bodies.push(vec![0; more]);
        }
        let sent: Vec<&[u8]> = messages.iter().map(|message| body(message)).collect();
        self.swap(&sent, &mut bodies, BODIES, waits_for);
        let whole = |((rank, head), body): ((usize, &Vec<u8>), Vec<u8>)| {
            if rank == self.rank {
                return messages[rank].to_vec();
            }
            if body.is_empty() {
                return head[LENGTH..][..length(head)].to_vec();
            }
            let mut message = Vec::with_capacity(length(head));
            message.extend(&head[LENGTH..]);
            message.extend(body);
            message
        };
        Ok(heads.iter().enumerate().zip(bodies).map(whole).collect())
    }

    fn fail(&self, why: &str) {
        let why = &why.as_bytes()[..why.floor_char_boundary(HEAD - LENGTH)];
        let heads = vec![head(FAILED | why.len() as u64, why); self.ranks];
        let reason = format!("could not go on: {}", String::from_utf8_lossy(why));
        self.heads(&heads, &reason);
    }

    fn alive(&self) {
        let mut signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        if signs.sent.elapsed() < self.deadline / 8 {
            return;
        }
        signs.sent = Instant::now();
        let world = SimpleCommunicator::world();
        UNDER_WAY.with_borrow_mut(|signs| {
            let waiting = under_way(signs);
            for other in
                (0..self.ranks).filter(|rank| *rank != self.rank && !waiting.contains(rank))
            {
                let process = world.process_at_rank(other as Rank);
                let sign = process.immediate_send_with_tag(StaticScope, SIGN, ALIVE);
                signs.push((other, sign));
            }
        });
    }
}
