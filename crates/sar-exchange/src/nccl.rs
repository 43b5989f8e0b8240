//! Long messages from GPU to GPU with NCCL, for ranks that have another way for all else. **Never run**: written
//! against cudarc's sources, compiled, and tested as far as that goes without a GPU.
//!
//! What waits in NCCL for a rank that is gone waits for ever, and cudarc's safe wrappers have no communicator that does
//! not block and no asynchronous errors. Therefore a thread of its own makes all calls that may wait for others, while
//! the rank gives signs of life; both give up at the deadline. The thread drops its communicator then, which is
//! `ncclCommAbort` and ends what its kernels wait for. Of an error on one rank the others hear when they have given up.
//!
//! Bytes come from host memory and go back there: one copy to the GPU for each body, however many ranks it is for, and
//! one from it. NCCL carries and adds nothing, so that sums are those of the tree.

use std::ffi::c_char;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};
use cudarc::nccl::result::{NcclError, get_nccl_version};
use cudarc::nccl::{Comm, Id, group_end, group_start};

use crate::split::{Broken, Carry, Split, all_made, places};
use crate::{ExchangeError, Group};

/// Bytes of a message that goes the other way at most: the ways to the GPU and back take their time. Not measured.
const LONG: usize = 1 << 20;

/// How often a rank that waits for NCCL may give a sign of life.
const SIGN: Duration = Duration::from_millis(50);

/// How long after the deadline the thread may say that it has given up.
const GRACE: Duration = Duration::from_secs(10);

/// The same ranks, whose messages of more than 1 MiB go from GPU to GPU. `gpu` is the index of this rank's among those
/// that its process sees; no two ranks may have the same. All ranks make the call. On the GPU two buffers are kept, as
/// large as what a rank gives and takes in one exchange.
///
/// Messages that take longer than `deadline` end the exchange, and all ranks hear of it. One rank alone needs no GPU.
///
/// # Errors
/// On all ranks the same: where one has no such GPU, no CUDA, or no NCCL by the name `libnccl.so`; where two have the
/// same GPU; as [`Group::all_to_all`].
pub fn start(group: &Group, gpu: usize, deadline: Duration) -> Result<Group, ExchangeError> {
    if group.is_alone() {
        return Ok(group.clone());
    }
    let (stream, ids) = all_made(group, caught(|| open(gpu, group.leads())))?;
    let id: [u8; 128] =
        ids[0].as_slice().try_into().map_err(|_| ExchangeError::Unexpected { rank: 0 })?;
    let seat = Seat {
        rank: group.rank(),
        ranks: group.ranks(),
        id: Id::uninit(id.map(|byte| c_char::from_ne_bytes([byte]))),
        stream: Arc::clone(&stream),
        deadline,
    };
    let mut thread = Thread::start(seat);
    let buffers = thread.reply(deadline, &|| group.alive());
    let (buffers, _) = all_made(group, buffers.map(|buffers| (buffers, Vec::new())))?;
    thread.buffers = Some(buffers);
    let nccl = Nccl { stream, deadline, thread: Mutex::new(thread) };
    Ok(Split::group(group.clone(), nccl, LONG))
}

/// A stream on a GPU, and of the rank that leads what all find each other by.
fn open(gpu: usize, leads: bool) -> Result<(Arc<CudaStream>, Vec<u8>), Broken> {
    let stream = CudaContext::new(gpu).and_then(|context| context.new_stream()).map_err(cuda)?;
    // Who has no NCCL is to say so now: in the next call the others would wait for it.
    get_nccl_version().map_err(nccl)?;
    let id = match leads {
        true => Id::new().map_err(nccl)?.internal().map(|c| c.to_ne_bytes()[0]).to_vec(),
        false => Vec::new(),
    };
    Ok((stream, id))
}

fn cuda(error: DriverError) -> Broken {
    Broken::Here(format!("CUDA: {error}"))
}

fn nccl(NcclError(code): NcclError) -> Broken {
    Broken::Here(format!("NCCL: {code:?}; with NCCL_DEBUG=WARN it says more"))
}

fn in_vain(deadline: Duration) -> Broken {
    Broken::InVain(format!("waited for NCCL for {} s in vain", deadline.as_secs()))
}

/// What work makes, or the words of its panic: cudarc's answer where there is no library.
fn caught<T>(work: impl FnOnce() -> Result<T, Broken>) -> Result<T, Broken> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        let line = words.and_then(|words| words.lines().next()).unwrap_or("NCCL panicked");
        // It goes on with all names that it tried.
        Err(Broken::Here(match line.split_once(" - searched for") {
            Some((line, _)) => format!(
                "{line}; it takes an NVIDIA GPU with its driver, and NCCL as libnccl.so, where \
                 LD_LIBRARY_PATH says"
            ),
            None => line.to_owned(),
        }))
    })
}

/// What the thread starts with.
struct Seat {
    rank: usize,
    ranks: usize,
    id: Id,
    stream: Arc<CudaStream>,
    deadline: Duration,
}

/// What goes and what has come, on the GPU.
#[derive(Debug)]
struct Buffers {
    sent: CudaSlice<u8>,
    received: CudaSlice<u8>,
}

/// Places of the buffers, each with a rank that is given them or gives them.
struct Job {
    buffers: Buffers,
    gives: Vec<(i32, Range<usize>)>,
    takes: Vec<(i32, Range<usize>)>,
}

impl Job {
    /// Until all has left and arrived.
    fn work(&mut self, comm: &Comm, deadline: Duration) -> Result<(), Broken> {
        let since = Instant::now();
        group_start().map_err(nccl)?;
        let queued = self.queue(comm);
        // A group that was opened is closed in any case.
        let closed = group_end();
        queued.map_err(nccl)?;
        closed.map_err(nccl)?;
        let end = comm.stream().record_event(None).map_err(cuda)?;
        while !end.try_is_complete().map_err(cuda)? {
            if since.elapsed() > deadline {
                return Err(in_vain(deadline));
            }
            thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    fn queue(&mut self, comm: &Comm) -> Result<(), NcclError> {
        for (rank, place) in &self.gives {
            comm.send(&self.buffers.sent.slice(place.clone()), *rank)?;
        }
        for (rank, place) in &self.takes {
            comm.recv(&mut self.buffers.received.slice_mut(place.clone()), *rank)?;
        }
        Ok(())
    }
}

/// Joins the others, and then works for this rank until it wants no more. Every reply gives the buffers back.
fn serve(
    seat: Seat,
    jobs: &Receiver<Job>,
    replies: &Sender<Result<Buffers, Broken>>,
) -> Result<(), Broken> {
    let Seat { rank, ranks, id, stream, deadline } = seat;
    stream.context().bind_to_thread().map_err(cuda)?;
    let comm = Comm::from_rank(Arc::clone(&stream), rank, ranks, id).map_err(nccl)?;
    let empty = || stream.alloc_zeros::<u8>(LONG).map_err(cuda);
    let _ = replies.send(Ok(Buffers { sent: empty()?, received: empty()? }));
    while let Ok(mut job) = jobs.recv() {
        if let Err(broken) = job.work(&comm, deadline) {
            // Before the buffers, which may wait for what is under way. It panics where it cannot be ended; what broke
            // says more.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(comm)));
            return Err(broken);
        }
        let _ = replies.send(Ok(job.buffers));
    }
    Ok(())
}

/// The thread that makes the calls, as its rank sees it.
#[derive(Debug)]
struct Thread {
    jobs: Option<Sender<Job>>,
    replies: Receiver<Result<Buffers, Broken>>,
    /// None while it has them, and after it has failed.
    buffers: Option<Buffers>,
}

impl Thread {
    fn start(seat: Seat) -> Self {
        let (jobs, taken) = mpsc::channel();
        let (said, replies) = mpsc::channel();
        thread::spawn(move || {
            if let Err(broken) = caught(|| serve(seat, &taken, &said)) {
                let _ = said.send(Err(broken));
            }
        });
        Self { jobs: Some(jobs), replies, buffers: None }
    }

    fn reply(&self, deadline: Duration, waiting: &dyn Fn()) -> Result<Buffers, Broken> {
        let since = Instant::now();
        loop {
            match self.replies.recv_timeout(SIGN) {
                Ok(reply) => return reply,
                Err(RecvTimeoutError::Disconnected) => return Err(over()),
                // It waits where it can be told nothing.
                Err(RecvTimeoutError::Timeout) if since.elapsed() > deadline + GRACE => {
                    return Err(in_vain(deadline));
                }
                Err(RecvTimeoutError::Timeout) => waiting(),
            }
        }
    }
}

fn over() -> Broken {
    Broken::Here("NCCL has failed before".into())
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.jobs = None;
        // The process is not to end before the communicator has, unless its thread hangs.
        let _ = self.replies.recv_timeout(GRACE);
    }
}

#[derive(Debug)]
struct Nccl {
    stream: Arc<CudaStream>,
    deadline: Duration,
    thread: Mutex<Thread>,
}

impl Nccl {
    /// Makes room for so many bytes.
    fn ensure(&self, buffer: &mut CudaSlice<u8>, bytes: usize) -> Result<(), Broken> {
        if buffer.len() < bytes {
            *buffer = self.stream.alloc_zeros(bytes).map_err(cuda)?;
        }
        Ok(())
    }
}

impl Carry for Nccl {
    fn carry(
        &self,
        bodies: &[&[u8]],
        lengths: &[usize],
        waiting: &dyn Fn(),
    ) -> Result<Vec<Vec<u8>>, Broken> {
        let (given, to_send) = places(bodies);
        let mut to_receive = 0;
        let after = |length: &usize| {
            let start: usize = to_receive;
            to_receive += *length;
            start..to_receive
        };
        let taken: Vec<Range<usize>> = lengths.iter().map(after).collect();
        if to_send + to_receive == 0 {
            return Ok(vec![Vec::new(); lengths.len()]);
        }
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffers = thread.buffers.take().ok_or_else(over)?;
        self.ensure(&mut buffers.sent, to_send)?;
        self.ensure(&mut buffers.received, to_receive)?;
        let mut end = 0;
        for (body, place) in bodies.iter().zip(&given) {
            // What is empty, or lies there already, ends before.
            if place.end > end {
                let mut room = buffers.sent.slice_mut(place.clone());
                self.stream.memcpy_htod(*body, &mut room).map_err(cuda)?;
                end = place.end;
            }
        }
        // The bodies are the caller's: nothing reads them any more, whatever becomes of NCCL.
        self.stream.synchronize().map_err(cuda)?;
        let job = Job { buffers, gives: of_ranks(&given), takes: of_ranks(&taken) };
        if let Some(jobs) = &thread.jobs {
            // One that has ended says so in its reply.
            let _ = jobs.send(job);
        }
        let buffers = thread.reply(self.deadline, waiting)?;
        let fetch = |place: &Range<usize>| match place.is_empty() {
            true => Ok(Vec::new()),
            false => self.stream.clone_dtoh(&buffers.received.slice(place.clone())).map_err(cuda),
        };
        let received: Result<Vec<Vec<u8>>, Broken> = taken.iter().map(fetch).collect();
        self.stream.synchronize().map_err(cuda)?;
        thread.buffers = Some(buffers);
        received
    }
}

/// The places that are not empty, and whose they are.
fn of_ranks(places: &[Range<usize>]) -> Vec<(i32, Range<usize>)> {
    let places = (0..).zip(places.iter().cloned());
    places.filter(|(_, place)| !place.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::tests::{self, on_three};

    /// On a machine without CUDA there is no library, on others no GPU of this index.
    #[test]
    fn where_there_is_no_gpu_all_ranks_say_so() {
        let all = on_three(tests::LONG, |group| start(&group, 1000, tests::LONG).unwrap_err());
        assert!(matches!(&all[0], ExchangeError::Failed { rank: 0, .. }), "{:?}", all[0]);
        assert!(all.iter().all(|error| *error == all[0]), "{all:?}");
        let line = all[0].to_string();
        assert!(line.contains("cuda") || line.contains("CUDA"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(start(&Group::alone(), 1000, tests::LONG).unwrap().is_alone());
    }

    #[test]
    fn places_are_of_ranks() {
        assert_eq!(of_ranks(&[0..0, 0..4, 4..4, 4..9]), [(1, 0..4), (3, 4..9)]);
    }
}
