//! Jobs: those that wait, the one that is drawn, and the finished ones that are still shown.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use sar_request::Work;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::Limits;
use crate::answers::Refusal;

/// What a job has come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Status {
    Queued,
    Running,
    Done,
    Failed,
    Canceled,
}

/// All that clients see of a job.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) status: Status,
    /// Jobs before it.
    pub(crate) ahead: usize,
    /// What there is to know once it begins.
    pub(crate) begun: Option<Value>,
    /// What there is after each scale: the data of its event.
    pub(crate) scales: Vec<Arc<str>>,
    /// PNG files.
    pub(crate) pictures: Vec<Bytes>,
    /// What an edit begins with: the picture as the model sees it, and with a hole; PNG files.
    pub(crate) before: Vec<Bytes>,
    pub(crate) error: Option<String>,
}

/// One request, from its queue to its pictures.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: String,
    /// What was asked for.
    about: Value,
    work: Mutex<Option<Work>>,
    state: watch::Sender<State>,
    is_canceled: AtomicBool,
    watchers: AtomicUsize,
    asked: Mutex<Instant>,
}

/// All jobs.
#[derive(Debug)]
pub(crate) struct Jobs {
    inner: Mutex<Inner>,
    /// Something waits, or nothing will any more.
    changed: Condvar,
    limits: Limits,
    names: RandomState,
}

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<Arc<Job>>,
    running: Option<Arc<Job>>,
    /// The oldest first.
    finished: VecDeque<Arc<Job>>,
    n_jobs: u64,
    is_closed: bool,
}

/// What nobody panics with is never poisoned.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    pub(crate) fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Canceled)
    }
}

impl Job {
    /// Changes what clients see.
    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    /// Ends it, once.
    pub(crate) fn end(&self, status: Status, error: Option<String>) {
        self.change(|state| {
            if !state.status.is_final() {
                (state.status, state.error) = (status, error);
            }
        });
    }

    /// Nobody wants it any more.
    pub(crate) fn cancel(&self) {
        self.is_canceled.store(true, Ordering::Relaxed);
    }

    /// Whether anybody still wants it: it was not canceled, and somebody watches it or has asked for it a
    /// moment ago.
    pub(crate) fn is_wanted(&self, unwatched: Duration) -> bool {
        !self.is_canceled.load(Ordering::Relaxed)
            && (self.watchers.load(Ordering::Relaxed) > 0
                || locked(&self.asked).elapsed() < unwatched)
    }

    /// Why it ended before it was done.
    pub(crate) fn why_unwanted(&self) -> &'static str {
        match self.is_canceled.load(Ordering::Relaxed) {
            true => "it was canceled",
            false => "nobody watched it any more",
        }
    }

    /// The work, for the one who does it.
    pub(crate) fn take_work(&self) -> Option<Work> {
        locked(&self.work).take()
    }

    pub(crate) fn state(&self) -> watch::Ref<'_, State> {
        self.state.borrow()
    }

    /// All that there is to know but the pictures themselves.
    pub(crate) fn to_json(&self) -> Value {
        let state = self.state();
        let mut json = self.about.clone();
        json["id"] = self.id.clone().into();
        json["status"] = state.status.name().into();
        json["ahead"] = state.ahead.into();
        json["begun"] = state.begun.clone().unwrap_or_default();
        json["scales_done"] = state.scales.len().into();
        json["pictures"] = self.urls("pictures", state.pictures.len());
        json["before"] = self.urls("before", state.before.len());
        json["error"] = state.error.clone().into();
        json
    }

    pub(crate) fn urls(&self, kind: &str, n: usize) -> Value {
        let id = &self.id;
        (0..n).map(|i| format!("/api/jobs/{id}/{kind}/{i}")).collect::<Vec<_>>().into()
    }

    /// Bytes of what is kept of it.
    fn size(&self) -> usize {
        let state = self.state();
        let files = state.pictures.iter().chain(&state.before).map(Bytes::len).sum::<usize>();
        files + state.scales.iter().map(|event| event.len()).sum::<usize>()
    }
}

/// Somebody who watches a job, as long as this lives.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) job: Arc<Job>,
    pub(crate) states: watch::Receiver<State>,
}

impl Watcher {
    pub(crate) fn new(job: Arc<Job>) -> Self {
        job.watchers.fetch_add(1, Ordering::Relaxed);
        Self { states: job.state.subscribe(), job }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        *locked(&self.job.asked) = Instant::now();
        self.job.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Jobs {
    pub(crate) fn new(limits: Limits) -> Self {
        let (inner, names) = (Mutex::default(), RandomState::new());
        Self { inner, changed: Condvar::new(), limits, names }
    }

    /// Queues work.
    ///
    /// # Errors
    /// If too much waits.
    pub(crate) fn submit(&self, about: Value, work: Work) -> Result<Arc<Job>, Refusal> {
        let mut inner = locked(&self.inner);
        inner.drop_unwanted(&self.limits);
        let ahead = inner.queue.len() + usize::from(inner.running.is_some());
        if inner.queue.len() >= self.limits.queue {
            return Err(Refusal::busy(format!(
                "{} jobs wait already; try again in a few seconds",
                inner.queue.len()
            )));
        }
        inner.n_jobs += 1;
        let job = Arc::new(Job {
            // Nobody guesses another's.
            id: format!("{}-{:016x}", inner.n_jobs, self.names.hash_one(inner.n_jobs)),
            about,
            work: Mutex::new(Some(work)),
            state: watch::Sender::new(State {
                status: Status::Queued,
                ahead,
                begun: None,
                scales: Vec::new(),
                pictures: Vec::new(),
                before: Vec::new(),
                error: None,
            }),
            is_canceled: AtomicBool::new(false),
            watchers: AtomicUsize::new(0),
            asked: Mutex::new(Instant::now()),
        });
        inner.queue.push_back(Arc::clone(&job));
        self.changed.notify_one();
        Ok(job)
    }

    /// The next job that is wanted, once there is one; none when the server ends.
    pub(crate) fn next(&self) -> Option<Arc<Job>> {
        let mut inner = locked(&self.inner);
        loop {
            inner.drop_unwanted(&self.limits);
            if inner.is_closed {
                return None;
            }
            if let Some(job) = inner.queue.pop_front() {
                inner.running = Some(Arc::clone(&job));
                inner.renumber();
                return Some(job);
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The running job has ended: it is kept for a while.
    pub(crate) fn finished(&self) {
        let mut inner = locked(&self.inner);
        if let Some(job) = inner.running.take() {
            inner.finished.push_back(job);
        }
        inner.trim(&self.limits);
    }

    /// A job that somebody asks for.
    pub(crate) fn find(&self, id: &str) -> Result<Arc<Job>, Refusal> {
        let inner = locked(&self.inner);
        let mut all = inner.queue.iter().chain(&inner.running).chain(&inner.finished);
        let job = all.find(|job| job.id == id).ok_or_else(|| Refusal::missing("job"))?;
        *locked(&job.asked) = Instant::now();
        Ok(Arc::clone(job))
    }

    /// Cancels a job: one that waits at once, one that runs after the scale at hand; a finished one is
    /// forgotten.
    pub(crate) fn cancel(&self, id: &str) -> Result<Arc<Job>, Refusal> {
        let job = self.find(id)?;
        let is_over = job.state().status.is_final();
        job.cancel();
        let mut inner = locked(&self.inner);
        inner.drop_unwanted(&self.limits);
        if is_over {
            inner.finished.retain(|other| other.id != id);
        }
        Ok(job)
    }

    /// Whoever waits for a job gets none any more, and the running one ends.
    pub(crate) fn close(&self) {
        let mut inner = locked(&self.inner);
        inner.is_closed = true;
        inner.queue.iter().chain(&inner.running).for_each(|job| job.cancel());
        inner.drop_unwanted(&self.limits);
        self.changed.notify_all();
    }

    /// How much there is, for whoever looks after the server.
    pub(crate) fn summary(&self) -> Value {
        let inner = locked(&self.inner);
        json!({
            "waiting": inner.queue.len(),
            "running": usize::from(inner.running.is_some()),
            "kept": inner.finished.len(),
            "kept_bytes": inner.finished.iter().map(|job| job.size()).sum::<usize>(),
            "submitted": inner.n_jobs,
        })
    }
}

impl Inner {
    fn drop_unwanted(&mut self, limits: &Limits) {
        let (wanted, unwanted): (VecDeque<_>, VecDeque<_>) =
            self.queue.drain(..).partition(|job| job.is_wanted(limits.unwatched));
        self.queue = wanted;
        for job in unwanted {
            // Its pictures need their memory no more.
            drop(job.take_work());
            job.end(Status::Canceled, Some(job.why_unwanted().into()));
            self.finished.push_back(job);
        }
        self.renumber();
        self.trim(limits);
    }

    /// Tells those that wait how many are before them, if that has changed.
    fn renumber(&self) {
        let running = usize::from(self.running.is_some());
        for (i, waiting) in self.queue.iter().enumerate() {
            let ahead = running + i;
            waiting.state.send_if_modified(|state| mem::replace(&mut state.ahead, ahead) != ahead);
        }
    }

    fn trim(&mut self, limits: &Limits) {
        let mut bytes: usize = self.finished.iter().map(|job| job.size()).sum();
        while self.finished.len() > limits.kept || bytes > limits.kept_bytes {
            let Some(oldest) = self.finished.pop_front() else { break };
            bytes -= oldest.size();
        }
    }
}

#[cfg(test)]
mod tests {
    use sar_core::ScaleSchedule;
    use sar_request::What;
    use sar_rollout::{Choice, Guidance, Sampler};

    use super::*;

    fn work() -> Work {
        let sampler = Sampler { guidance: Guidance::Ramp { scale: 1.0 }, choice: Choice::Argmax };
        let scales = ScaleSchedule::squares(&[1, 2]).unwrap();
        let what = What::Sample { label: 0, seed: 0, scales, sampler };
        Work { what, count: 1, previews: true, origin: None }
    }

    fn jobs(limits: Limits) -> (Jobs, impl Fn(&Jobs) -> Result<Arc<Job>, Refusal>) {
        (Jobs::new(limits), |jobs: &Jobs| jobs.submit(json!({ "kind": "sample" }), work()))
    }

    #[test]
    fn the_queue_has_a_bound_and_an_order() {
        let limits = Limits { queue: 2, ..Limits::default() };
        let (jobs, submit) = jobs(limits);
        let first = submit(&jobs).unwrap();
        assert_eq!(jobs.next().unwrap().id, first.id);
        let (second, third) = (submit(&jobs).unwrap(), submit(&jobs).unwrap());
        assert_eq!([second.state().ahead, third.state().ahead], [1, 2]);
        let refusal = submit(&jobs).unwrap_err();
        assert!(refusal.why.starts_with("2 jobs wait"), "{}", refusal.why);
        assert_eq!(refusal.status, axum::http::StatusCode::SERVICE_UNAVAILABLE);
        jobs.finished();
        assert_eq!(jobs.next().unwrap().id, second.id);
        assert_eq!(third.state().ahead, 1);
        submit(&jobs).unwrap();
    }

    #[test]
    fn a_canceled_job_leaves_the_queue_at_once() {
        let (jobs, submit) = jobs(Limits { queue: 1, ..Limits::default() });
        let job = submit(&jobs).unwrap();
        assert!(submit(&jobs).is_err());
        jobs.cancel(&job.id).unwrap();
        assert_eq!(job.state().status, Status::Canceled);
        assert!(job.take_work().is_none());
        assert!(jobs.find(&job.id).is_ok(), "whoever asks is told");
        jobs.cancel(&job.id).unwrap();
        assert!(jobs.find(&job.id).is_err(), "and then it is forgotten");
        // However often, nothing piles up.
        for _ in 0..1000 {
            let job = submit(&jobs).unwrap();
            jobs.cancel(&job.id).unwrap();
        }
        assert_eq!(jobs.summary()["kept"], Limits::default().kept);
        submit(&jobs).unwrap();
        assert_eq!(jobs.cancel("1-0").unwrap_err().status, axum::http::StatusCode::NOT_FOUND);
    }

    #[test]
    fn those_behind_a_job_that_leaves_move_up_and_hear_of_it() {
        let (jobs, submit) = jobs(Limits { queue: 9, ..Limits::default() });
        submit(&jobs).unwrap();
        jobs.next().unwrap();
        let waiting: Vec<Arc<Job>> = (0..4).map(|_| submit(&jobs).unwrap()).collect();
        let mut watchers: Vec<Watcher> =
            waiting.iter().map(|job| Watcher::new(Arc::clone(job))).collect();
        watchers.iter_mut().for_each(|watcher| _ = watcher.states.borrow_and_update());
        let ahead = || waiting.iter().map(|job| job.state().ahead).collect::<Vec<_>>();
        assert_eq!(ahead(), [1, 2, 3, 4]);
        jobs.cancel(&waiting[1].id).unwrap();
        assert_eq!(ahead(), [1, 2, 2, 3]);
        let has_heard = |watcher: &Watcher| watcher.states.has_changed().unwrap();
        let heard: Vec<bool> = watchers.iter().map(has_heard).collect();
        assert_eq!(heard, [false, true, true, true], "the first one stands where it stood");
        jobs.finished();
        jobs.cancel(&waiting[0].id).unwrap();
        assert_eq!(ahead(), [1, 2, 0, 1], "nothing is drawn at the moment");
        jobs.next().unwrap();
        assert_eq!(ahead()[3], 1);
    }

    #[test]
    fn what_nobody_watches_is_not_drawn() {
        let limits = Limits { queue: 9, unwatched: Duration::from_millis(50), ..Limits::default() };
        let (jobs, submit) = jobs(limits);
        let (left, watched) = (submit(&jobs).unwrap(), submit(&jobs).unwrap());
        let watcher = Watcher::new(Arc::clone(&watched));
        std::thread::sleep(Duration::from_millis(80));
        assert_eq!(jobs.next().unwrap().id, watched.id);
        assert_eq!(left.state().status, Status::Canceled);
        assert!(watched.is_wanted(limits.unwatched));
        drop(watcher);
        assert!(watched.is_wanted(limits.unwatched), "it may come back at once");
        std::thread::sleep(Duration::from_millis(80));
        assert!(!watched.is_wanted(limits.unwatched));
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let (jobs, submit) = jobs(Limits { kept: 3, kept_bytes: 250, ..Limits::default() });
        let finish = |bytes: usize| {
            let job = submit(&jobs).unwrap();
            jobs.next().unwrap();
            job.change(|state| state.pictures = vec![Bytes::from(vec![0; bytes])]);
            job.end(Status::Done, None);
            jobs.finished();
            job.id.clone()
        };
        let ids: Vec<String> = (0..5).map(|_| finish(10)).collect();
        let is_there = |id: &String| jobs.find(id).is_ok();
        assert_eq!(ids.iter().map(is_there).collect::<Vec<_>>(), [false, false, true, true, true]);
        finish(240);
        assert_eq!(jobs.summary()["kept_bytes"], 250);
        finish(240);
        assert_eq!(
            [jobs.summary()["kept"].clone(), jobs.summary()["kept_bytes"].clone()],
            [1, 240]
        );
        finish(1000);
        assert_eq!(jobs.summary()["kept"], 0, "one that is too large is not kept at all");
    }

    #[test]
    fn a_closed_server_gives_no_work() {
        let (jobs, submit) = jobs(Limits::default());
        let job = submit(&jobs).unwrap();
        jobs.close();
        assert!(jobs.next().is_none());
        assert_eq!(job.state().status, Status::Canceled);
    }
}
